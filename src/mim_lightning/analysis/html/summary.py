"""The numbers of one evaluation with their intervals, overall and by segment.

An EvaluationRecord comes in, `Measure`s go out; `page` shows them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mim_lightning.analysis.comparison.differences import MIN_UNITS
from mim_lightning.analysis.record import DirectionRecord, EvaluationRecord
from mim_lightning.metrics.intervals import bootstrap_intervals


@dataclass(frozen=True)
class Measure:
    mean: float
    low: float  # 95 %; nan where the products are too few
    high: float
    num_queries: int  # that the metric says something of


@dataclass(frozen=True)
class SegmentRow:
    """One metric of the queries of one segment, by direction."""

    segment: str
    label: str
    measures: Mapping[str, Measure]


def measure_directions(
    record: EvaluationRecord, metrics: Sequence[str], num_resamples: int = 2000
) -> dict[str, dict[str, Measure]]:
    """Return the metrics that each direction has, by direction and metric."""
    return {
        name: _measure(direction, metrics, np.ones(len(direction.query_ids), dtype=bool), num_resamples)
        for name, direction in record.directions.items()
    }


def measure_segments(record: EvaluationRecord, metric: str, num_resamples: int = 2000) -> list[SegmentRow]:
    """Return one metric by segment label, ascending, with a measure of each direction that has such queries."""
    found: dict[tuple[str, str], dict[str, Measure]] = {}
    for name, direction in record.directions.items():
        for segment, label, is_in in _parts(direction):
            measure = _measure(direction, [metric], is_in, num_resamples).get(metric)
            if measure is not None:
                found.setdefault((segment, label), {})[name] = measure
    order = {segment: place for place, (segment, _) in enumerate(found)}
    ordered = sorted(found.items(), key=lambda item: (order[item[0][0]], item[0][1]))
    return [SegmentRow(segment, label, measures) for (segment, label), measures in ordered]


def _parts(direction: DirectionRecord) -> Iterator[tuple[str, str, np.ndarray]]:
    for segment, labels in direction.segments.items():
        for label in sorted(set(labels)):
            yield segment, label, np.array([other == label for other in labels])


def _measure(
    direction: DirectionRecord, metrics: Sequence[str], is_in: np.ndarray, num_resamples: int
) -> dict[str, Measure]:
    units = np.array(direction.unit_ids)
    found = {}
    for metric in metrics:
        scores = direction.scores.get(metric)
        is_known = is_in & ~np.isnan(scores) if scores is not None else np.zeros_like(is_in)
        if scores is None or not is_known.any():
            continue
        low, high = math.nan, math.nan
        if len(set(units[is_known].tolist())) >= MIN_UNITS:
            ends = bootstrap_intervals({metric: scores[is_known]}, units[is_known], num_resamples)
            low, high = ends[metric]
        found[metric] = Measure(float(scores[is_known].mean()), low, high, int(is_known.sum()))
    return found
