"""Differences of two run groups in one metric, over all queries and by segment, and the queries that changed most.

Intervals and p-values are paired by query and clustered by product, see `metrics.intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mim_lightning.analysis.comparison.pairing import PairedDirection, PairedSide
from mim_lightning.analysis.record import RunFacts
from mim_lightning.metrics.intervals import holm, paired_difference

MIN_UNITS = 6  # with fewer products, signs can be flipped in less than 40 ways: no p-value below 0.05
ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """One metric of a run group against the baseline's, over all queries or those of one segment."""

    direction: str
    metric: str
    group: str
    segment: str  # "" for all queries
    label: str
    baseline_mean: float
    group_mean: float
    difference: float
    low: float  # 95 %; nan if there are too few products
    high: float
    p_value: float  # by randomization, two-sided; nan if there are too few products
    holm_p: float  # corrected for the number of segments reported together; nan for all queries
    num_queries: int
    num_clusters: int
    num_products: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero and, for a segment, Holm's p-value is below 0.05."""
        excludes_zero = self.low > 0 or self.high < 0
        return excludes_zero and (not self.segment or self.holm_p < ALPHA)

    @property
    def is_better(self) -> bool:
        return (self.difference < 0) == is_lower_better(self.metric) and self.difference != 0

    @property
    def relative(self) -> float:
        return self.difference / self.baseline_mean if self.baseline_mean else math.nan


def is_lower_better(metric: str) -> bool:
    return metric.startswith("wrong")


class MeasuredPair:
    """One metric of a paired direction, over the queries that have a value in all runs."""

    def __init__(self, paired: PairedDirection, metric: str, num_resamples: int, seed: int) -> None:
        self.paired, self.metric = paired, metric
        self.before, self.after = paired.before.scores(metric), paired.after.scores(metric)
        self.is_known = ~(np.isnan(self.before).any(axis=0) | np.isnan(self.after).any(axis=0))
        self.units = np.unique(paired.unit_ids, return_inverse=True)[1]
        self.options = {"num_resamples": num_resamples, "seed": seed}
        num_unknown = int((~self.is_known).sum())
        self.notes = (
            [f"{paired.direction}, {metric}: {num_unknown} queries excluded: some run has no value"]
            if num_unknown
            else []
        )

    def overall(self) -> list[Difference]:
        return [self._measure(self.is_known, "", "")] if self.is_known.any() else []

    def by_segment(self, names: Sequence[str]) -> list[Difference]:
        rows = []
        for name in names:
            labels = np.array(self.paired.segments[name])
            for label in sorted(set(labels[self.is_known].tolist())):
                rows.append(self._measure(self.is_known & (labels == label), name, label))
        corrected = holm([row.p_value for row in rows])
        return [replace(row, holm_p=p) for row, p in zip(rows, corrected, strict=True)]

    def _measure(self, is_in: np.ndarray, segment: str, label: str) -> Difference:
        before, after, units = self.before[:, is_in], self.after[:, is_in], self.units[is_in]
        found = paired_difference(after, before, units, **self.options)
        is_enough = found.num_clusters >= MIN_UNITS
        return Difference(
            direction=self.paired.direction,
            metric=self.metric,
            group=self.paired.after.label,
            segment=segment,
            label=label,
            baseline_mean=float(before.mean()),
            group_mean=float(after.mean()),
            difference=found.difference,
            low=found.low if is_enough else math.nan,
            high=found.high if is_enough else math.nan,
            p_value=found.p_value if is_enough else math.nan,
            holm_p=math.nan,
            num_queries=found.num_queries,
            num_clusters=found.num_clusters,
            num_products=self.paired.num_products,
        )


@dataclass(frozen=True)
class Answer:
    """What a run group answers one query: the ranks of all its runs, the first hits of the run of median rank."""

    ranks: tuple[int, ...]  # of the first relevant product; 0: rank > depth
    hit_ids: list[str]
    hit_scores: list[float]
    hit_is_relevant: list[bool]


@dataclass(frozen=True)
class QueryChange:
    """One query in two run groups."""

    direction: str
    group: str
    query_id: str
    text: str
    unit_id: str  # a relevant product
    segments: dict[str, str]
    gain: float  # in reciprocal rank, mean over runs; -1 to 1
    before: Answer
    after: Answer
    facts: RunFacts  # of a run that has the query: where its images are stored


def find_changes(paired: PairedDirection) -> list[QueryChange]:
    """Return the queries whose reciprocal rank differs, the largest change first; ties ascend by query id."""
    return sorted(_changes(paired), key=lambda change: (-abs(change.gain), change.query_id))


def _changes(paired: PairedDirection) -> Iterator[QueryChange]:
    before, after = paired.before.ranks(), paired.after.ranks()
    gains = _reciprocal(after).mean(axis=0) - _reciprocal(before).mean(axis=0)
    for query in np.flatnonzero(gains).tolist():
        yield QueryChange(
            direction=paired.direction,
            group=paired.after.label,
            query_id=paired.query_ids[query],
            text=paired.texts[query],
            unit_id=paired.unit_ids[query],
            segments={name: labels[query] for name, labels in paired.segments.items()},
            gain=float(gains[query]),
            before=_answer(paired.before, before[:, query], query),
            after=_answer(paired.after, after[:, query], query),
            facts=paired.before.locate(query)[0].evaluation.facts,
        )


def _reciprocal(ranks: np.ndarray) -> np.ndarray:
    return np.where(ranks > 0, 1 / np.maximum(ranks, 1), 0.0)


def _answer(side: PairedSide, ranks: np.ndarray, query: int) -> Answer:
    median_run = np.argsort(_reciprocal(ranks), kind="stable")[len(ranks) // 2]
    part, row = side.locate(query, int(median_run))
    record = part.record
    return Answer(tuple(ranks.tolist()), record.hit_ids[row], record.hit_scores[row], record.hit_is_relevant[row])
