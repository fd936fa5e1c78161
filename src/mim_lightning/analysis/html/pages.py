"""HTML pages of evaluations: the comparison of run groups, and the report of one run.

Each is one self-contained file: it loads nothing when it is opened, and runs no script.
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
from mim_lightning.analysis.html.images import ImageCache, PageImages, open_images_of
from mim_lightning.analysis.html.render import write_page
from mim_lightning.analysis.html.size_figure import SizeFigure
from mim_lightning.analysis.index_curve import CurvePoint
from mim_lightning.analysis.query_history import TrackedRank
from mim_lightning.analysis.record import EvaluationRecord
from mim_lightning.metric_names import variants_of

COLUMNS = ("hit@1", "hit@5", "hit@10", "mrr", "ndcg@10", "wrong_category@1")
CURVE_SIZE = (cards.CURVE_WIDTH, cards.CURVE_HEIGHT)
History = Mapping[str, Sequence[TrackedRank]]  # by query id


@dataclass(frozen=True)
class Axis:
    """The common axis of the interval drawings in one table."""

    low: float
    high: float

    @classmethod
    def of(cls, rows: Sequence[Difference]) -> Axis:
        ends = [end for row in rows for end in (row.difference, row.low, row.high) if not math.isnan(end)]
        return cls(min([0, *ends]), max([0, *ends]))

    def position(self, value: float) -> float:
        """Return the position in percent of the width, with a margin for the marks at both ends."""
        return round(5 + 90 * (value - self.low) / (self.high - self.low or 1), 1)


def write_comparison_page(comparison: Comparison, path: Path, num_hits: int = 5) -> None:
    """Write a comparison: tables, then the queries that changed most with the hits of each group.

    Args:
        comparison: runs may come from any machine; images are shown if the prepared shards are available.
        path: of the file; its folder is created.
        num_hits: of a query, for each group.
    """
    baseline, *others = comparison.groups
    images = ImageCache()
    changes = [
        (direction, label, kind, [cards.change_card(c, baseline.label, images.of(c.facts), num_hits) for c in changes])
        for kind, found in (("gained", comparison.gained), ("lost", comparison.lost))
        for (direction, label), changes in groupby(found, lambda c: (c.direction, c.group))
    ]
    write_page(
        path,
        "comparison.html.j2",
        title=f"{', '.join(group.label for group in others)} against {baseline.label}",
        comparison=comparison,
        axis_of=Axis.of,
        curve_size=CURVE_SIZE,
        axes={m: Axis.of([row for row in comparison.overall if row.metric == m]) for m in _metrics(comparison)},
        segment_tables=_segment_tables(comparison.by_segment),
        changes=sorted(changes, key=lambda part: part[:2]),
        min_clusters=MIN_UNITS,
        missing=images.missing,
    )


def write_report_page(
    record: EvaluationRecord,
    path: Path,
    history: History | None = None,
    direction: str | None = None,
    num_queries: int = 12,
    num_hits: int = 5,
    num_resamples: int = 2000,
    images: PageImages | None = None,
    results: Mapping[str, float] | None = None,
    full_width: int | None = None,
    sizes: tuple[str, Sequence[CurvePoint]] | None = None,
) -> None:
    """Write the report of one run: metrics with intervals, by segment, and queries with their hits.

    Args:
        record: of the run's evaluation.
        path: of the file; its folder is created.
        history: ranks of the queries that were tracked in training, which are then shown; else a fixed selection of
            `num_queries`, with hit@1 as over all queries.
        direction: whose queries are shown; None: the monitored one.
        num_queries: without a history.
        num_hits: of a query.
        num_resamples: of the bootstrap.
        images: of queries and products; None: from the data that the record names, if they still exist.
        results: of the run, flat, which may have metrics of several widths.
        full_width: of the vectors; None: not known.
        sizes: a direction, and what indexes of several sizes found in it.

    Raises:
        ValueError: the record lacks the direction.
    """
    monitored = record.facts.monitored
    metric = monitored.metric.split("/")[0]  # of whole vectors
    direction = direction or monitored.direction
    if direction not in record.directions:
        raise ValueError(f"{record.folder}: no direction '{direction}'; it has {', '.join(record.directions)}")
    answers = record.directions[direction]
    row_of = {query_id: row for row, query_id in enumerate(answers.query_ids)}
    history = history or {}
    rows = [row_of[q] for q in sorted(history) if q in row_of] or cards.spread_rows(answers, num_queries)
    images = images or open_images_of(record.facts)
    columns = variants_of(COLUMNS, [name for answered in record.directions.values() for name in answered.scores])
    write_page(
        path,
        "report.html.j2",
        title=record.facts.run_id,
        record=record,
        curve_size=CURVE_SIZE,
        direction=direction,
        metric=metric,
        columns=columns,
        measures=cards.measure_directions(record, columns, num_resamples),
        segments=cards.measure_segments(record, metric, num_resamples),
        size_figure=SizeFigure.of(*sizes) if sizes else SizeFigure.of_widths(results or {}, full_width),
        cards=[
            cards.query_card(answers, row, images, num_hits, history.get(answers.query_ids[row], ())) for row in rows
        ],
        min_clusters=MIN_UNITS,
        missing=[images.missing] if images.missing else [],
    )


def _segment_tables(rows: Sequence[Difference]) -> list[tuple[tuple[str, str, str], list[Difference]]]:
    return [(key, list(group)) for key, group in groupby(rows, lambda row: (row.direction, row.metric, row.group))]


def _metrics(comparison: Comparison) -> set[str]:
    return {row.metric for row in comparison.overall}
