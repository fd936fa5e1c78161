"""How far two arms differ in one metric, and how sure one can be: over all queries, and by segment.

A PairedDirection comes in, `Difference`s go out; `comparison` calls it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mim_lightning.analysis.comparison.pairing import PairedDirection
from mim_lightning.metrics.intervals import holm, paired_difference

MIN_UNITS = 6  # with fewer products, signs can be flipped in less than 40 ways: no p-value below 0.05
ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """One metric of one arm against the baseline's, over the queries of one segment or all of them."""

    direction: str
    metric: str
    arm: str
    segment: str  # "" for all queries
    label: str
    baseline_mean: float
    arm_mean: float
    difference: float
    low: float  # 95 %; nan where the products are too few
    high: float
    p_value: float  # by randomisation, two-sided; nan where the products are too few
    holm_p: float  # corrected for the number of segments told together; nan for all queries
    num_queries: int
    num_units: int
    num_products: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero; of a segment, also when corrected for being one among many."""
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
    """One metric of a paired direction, over the queries that it says something of."""

    def __init__(self, paired: PairedDirection, metric: str, num_resamples: int, seed: int) -> None:
        self.paired, self.metric = paired, metric
        self.before, self.after = paired.before.scores(metric), paired.after.scores(metric)
        self.is_known = ~(np.isnan(self.before).any(axis=0) | np.isnan(self.after).any(axis=0))
        self.units = np.unique(paired.unit_ids, return_inverse=True)[1]
        self.options = {"num_resamples": num_resamples, "seed": seed}
        num_unknown = int((~self.is_known).sum())
        self.notes = (
            [f"{paired.direction}, {metric}: {num_unknown} queries left out: without a value in some run"]
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
        is_enough = found.num_units >= MIN_UNITS
        return Difference(
            direction=self.paired.direction,
            metric=self.metric,
            arm=self.paired.after.label,
            segment=segment,
            label=label,
            baseline_mean=float(before.mean()),
            arm_mean=float(after.mean()),
            difference=found.difference,
            low=found.low if is_enough else math.nan,
            high=found.high if is_enough else math.nan,
            p_value=found.p_value if is_enough else math.nan,
            holm_p=math.nan,
            num_queries=found.num_queries,
            num_units=found.num_units,
            num_products=self.paired.num_products,
        )
