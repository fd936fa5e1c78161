"""Evidence as one HTML file that stands alone: a comparison of arms, or the report of one run.

A Comparison or an EvaluationRecord comes in, a page goes out, pictures and style inside; the compare door and the
train and evaluate doors call it. Nothing is fetched when the page is opened, and no script runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from mim_lightning.analysis.comparison.comparison import Comparison
from mim_lightning.analysis.comparison.differences import MIN_UNITS, Difference
from mim_lightning.analysis.html import query_cards as cards
from mim_lightning.analysis.html.images import Album, Pictures, open_pictures_of
from mim_lightning.analysis.html.render import write_page
from mim_lightning.analysis.html.summary import measure_directions, measure_segments
from mim_lightning.analysis.record import EvaluationRecord

COLUMNS = ("hit@1", "hit@5", "hit@10", "mrr", "ndcg@10", "wrong_category@1")
CURVE_SIZE = (cards.CURVE_WIDTH, cards.CURVE_HEIGHT)
History = Mapping[str, Sequence[tuple[int, int]]]  # query id -> (epoch, rank), rank 0 beyond the depth


@dataclass(frozen=True)
class Axis:
    """Where a value stands in the drawings of one table's intervals."""

    low: float
    high: float

    @classmethod
    def of(cls, rows: Sequence[Difference]) -> Axis:
        ends = [end for row in rows for end in (row.difference, row.low, row.high) if not math.isnan(end)]
        return cls(min([0, *ends]), max([0, *ends]))

    def place(self, value: float) -> float:
        """Return the place in percent of the width, with room for the marks at both ends."""
        return round(5 + 90 * (value - self.low) / (self.high - self.low or 1), 1)


def write_comparison_page(comparison: Comparison, path: Path, num_hits: int = 5) -> None:
    """Write a comparison: tables, then the queries that changed most with what each arm answers them.

    Args:
        comparison: arms may come from any machine; pictures are shown where the prepared shards are at hand.
        path: of the file; its folder is made.
        num_hits: products of a query, for each arm.
    """
    baseline, *others = comparison.arms
    album = Album()
    changes = [
        (direction, arm, kind, [cards.change_card(c, baseline.label, album.of(c.facts), num_hits) for c in group])
        for kind, found in (("gained", comparison.gained), ("lost", comparison.lost))
        for (direction, arm), group in groupby(found, lambda c: (c.direction, c.arm))
    ]
    write_page(
        path,
        "comparison.html.j2",
        title=f"{', '.join(arm.label for arm in others)} against {baseline.label}",
        comparison=comparison,
        axis_of=Axis.of,
        curve_size=CURVE_SIZE,
        axes={m: Axis.of([row for row in comparison.overall if row.metric == m]) for m in _metrics(comparison)},
        segment_tables=_segment_tables(comparison.by_segment),
        changes=sorted(changes, key=lambda part: part[:2]),
        min_units=MIN_UNITS,
        missing=album.missing,
    )


def write_report_page(
    record: EvaluationRecord,
    path: Path,
    history: History | None = None,
    direction: str | None = None,
    num_queries: int = 12,
    num_hits: int = 5,
    num_resamples: int = 2000,
    pictures: Pictures | None = None,
) -> None:
    """Write the report of one run: numbers with intervals, by segment, and queries with what the model answers.

    Args:
        record: of the run's evaluation.
        path: of the file; its folder is made.
        history: ranks of the queries that were followed in training, which are shown then; else a fixed choice of
            `num_queries`, as often right at the first place as all are.
        direction: whose queries and segments are told; None: the monitored one.
        num_queries: without a history.
        num_hits: products of a query.
        num_resamples: of the bootstrap.
        pictures: of queries and products; None: of the data that the record names, if they are still there.

    Raises:
        ValueError: the record lacks the direction.
    """
    monitored, metric = record.facts.monitor.split("/")[1:3]
    direction = direction or monitored
    if direction not in record.directions:
        raise ValueError(f"{record.folder}: no direction '{direction}'; it has {', '.join(record.directions)}")
    answers = record.directions[direction]
    place = {query_id: row for row, query_id in enumerate(answers.query_ids)}
    history = history or {}
    rows = [place[q] for q in sorted(history) if q in place] or cards.spread_rows(answers, num_queries)
    pictures = pictures or open_pictures_of(record.facts)
    write_page(
        path,
        "report.html.j2",
        title=record.facts.run_id,
        record=record,
        curve_size=CURVE_SIZE,
        direction=direction,
        metric=metric,
        columns=[m for m in COLUMNS if any(m in d.scores for d in record.directions.values())],
        measures=measure_directions(record, COLUMNS, num_resamples),
        segments=measure_segments(record, metric, num_resamples),
        cards=[
            cards.query_card(answers, row, pictures, num_hits, history.get(answers.query_ids[row], ())) for row in rows
        ],
        min_units=MIN_UNITS,
        missing=[pictures.missing] if pictures.missing else [],
    )


def _segment_tables(rows: Sequence[Difference]) -> list[tuple[tuple[str, str, str], list[Difference]]]:
    return [(key, list(group)) for key, group in groupby(rows, lambda row: (row.direction, row.metric, row.arm))]


def _metrics(comparison: Comparison) -> set[str]:
    return {row.metric for row in comparison.overall}
