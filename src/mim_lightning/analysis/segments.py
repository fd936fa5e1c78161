"""The metrics of one evaluation by segment of queries, in addition to the mean over all.

An evaluation record has more segments than these results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from mim_lightning.analysis.comparison.differences import MIN_UNITS
from mim_lightning.data.shards.lookup import BUILT_IN, QueryFacts
from mim_lightning.metrics import bootstrap_intervals
from mim_lightning.types import RetrievalReport

SEGMENTS = "segments"  # prefix of the keys: segments/<direction>/<segment>=<label>/<metric>
WITH_WORDS, WITHOUT_WORDS = "words=with", "words=without"
MAX_LABELS = 8  # of a segment that is reported


def measure_segments_of(
    reports: Mapping[str, RetrievalReport], facts: Mapping[int, QueryFacts], num_resamples: int = 1000
) -> dict[str, float]:
    """Return every metric for queries with and without a text, and by the segment columns of the source.

    Segments of 2 to `MAX_LABELS` labels are reported. The first metric has an interval if there are enough products.
    """
    results: dict[str, float] = {}
    for report in reports.values():
        units = report.cluster_keys.numpy()
        for name, is_in in _parts(report, facts):
            key = f"{SEGMENTS}/{report.direction}/{name}"
            results[f"{key}/num_queries"] = int(is_in.sum())
            scores = {metric: part.numpy()[is_in] for metric, part in report.scores.items()}
            known = {metric: part for metric, part in scores.items() if not np.isnan(part).all()}
            results |= {f"{key}/{metric}": float(np.nanmean(part)) for metric, part in known.items()}
            first = dict(list(known.items())[:1])
            if num_resamples and len(set(units[is_in].tolist())) >= MIN_UNITS:
                for metric, ends in bootstrap_intervals(first, units[is_in], num_resamples).items():
                    results |= {
                        f"{key}/{metric}/{end}": value for end, value in zip(("low", "high"), ends, strict=True)
                    }
    return results


def _parts(report: RetrievalReport, facts: Mapping[int, QueryFacts]) -> Iterator[tuple[str, np.ndarray]]:
    rows = [facts[key] for key in report.hits.query_keys.tolist()]
    columns = {"words": ["with" if row.text else "without" for row in rows]}
    own = (name for name in (rows[0].segments if rows else ()) if name not in BUILT_IN)
    columns |= {name: [row.segments[name] for row in rows] for name in own}
    for name, labels in columns.items():
        distinct = sorted(set(labels))
        if 2 <= len(distinct) <= MAX_LABELS:
            for label in distinct:
                # slashes separate the parts of a key
                yield f"{name}={label}".replace("/", "|"), np.array([other == label for other in labels])
