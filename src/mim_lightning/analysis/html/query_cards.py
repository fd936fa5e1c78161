"""What a page shows of one evaluation: metrics with intervals, overall and by segment, and cards of queries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mim_lightning.analysis.comparison.differences import MIN_UNITS, Answer, QueryChange
from mim_lightning.analysis.html.images import PageImage, PageImages
from mim_lightning.analysis.query_history import TrackedRank
from mim_lightning.analysis.record import DirectionRecord, EvaluationRecord
from mim_lightning.display.numbers import NOTHING, format_ranks
from mim_lightning.metrics.intervals import bootstrap_intervals

CURVE_WIDTH, CURVE_HEIGHT, CURVE_MARGIN = 220, 52, 5  # units of the SVG


@dataclass(frozen=True)
class HitCard:
    image: PageImage
    product_id: str
    score: float
    is_relevant: bool


@dataclass(frozen=True)
class ModelHits:
    """The first hits of one model."""

    label: str
    hits: tuple[HitCard, ...]


@dataclass(frozen=True)
class RankCurve:
    """The rank by epoch, or by step where an epoch has several, on a logarithmic scale with rank 1 at the top."""

    points: tuple[tuple[float, float], ...]
    summary: str
    ranks: str  # by epoch or step, as text


@dataclass(frozen=True)
class QueryCard:
    """One query: its image and text, the relevant product, and the hits of each model."""

    query: PageImage
    query_id: str
    text: str
    truth: PageImage
    segments: Mapping[str, str]
    headline: str
    is_good: bool
    models: tuple[ModelHits, ...]
    curve: RankCurve | None = None


def change_card(change: QueryChange, baseline: str, images: PageImages, num_hits: int) -> QueryCard:
    """Return the card of a query in a comparison: the hits of the baseline above those of the group."""
    before, after = change.before, change.after
    return QueryCard(
        query=images.query(change.query_id),
        query_id=change.query_id,
        text=change.text,
        truth=images.product(change.unit_id),
        segments=change.segments,
        headline=f"rank {format_ranks(before.ranks)} → {format_ranks(after.ranks)}",
        is_good=change.gain > 0,
        models=tuple(
            _model_hits(label, answer, images, num_hits)
            for label, answer in ((baseline, before), (change.group, after))
        ),
    )


def query_card(
    record: DirectionRecord, row: int, images: PageImages, num_hits: int, history: Sequence[TrackedRank]
) -> QueryCard:
    """Return the card of a query in one evaluation, with its rank over the training if there is a history."""
    rank = int(record.ranks[row])
    answer = Answer((rank,), record.hit_ids[row], record.hit_scores[row], record.hit_is_relevant[row])
    return QueryCard(
        query=images.query(record.query_ids[row]),
        query_id=record.query_ids[row],
        text=record.texts[row],
        truth=images.product(record.unit_ids[row]),
        segments={name: labels[row] for name, labels in record.segments.items()},
        headline=f"rank {format_ranks((rank,))}",
        is_good=rank == 1,
        models=(_model_hits("first hits", answer, images, num_hits),),
        curve=_curve(sorted(history)) if history else None,
    )


def spread_rows(record: DirectionRecord, size: int) -> list[int]:
    """Return rows spread evenly over the ids, of queries with and without a relevant first hit in proportion."""
    size = min(size, len(record.ranks))
    order = np.argsort(np.array(record.query_ids))
    is_hit = record.ranks[order] == 1
    num_hits = round(size * float(is_hit.mean())) if size else 0
    groups = ((order[is_hit], num_hits), (order[~is_hit], size - num_hits))
    return [int(row) for rows, count in groups if count for row in _spread(rows, count)]


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def _model_hits(label: str, answer: Answer, images: PageImages, num_hits: int) -> ModelHits:
    hits = zip(answer.hit_ids, answer.hit_scores, answer.hit_is_relevant, strict=True)
    cards = (HitCard(images.product(i), i, score, is_relevant) for i, score, is_relevant in islice(hits, num_hits))
    return ModelHits(label, tuple(cards))


def _curve(history: Sequence[TrackedRank]) -> RankCurve:
    is_by_step = len({found.epoch for found in history}) < len(history)
    places = [found.step if is_by_step else found.epoch for found in history]
    deepest = max(10, *(found.rank for found in history))
    span = max(1, places[-1] - places[0])

    def point(place: int, rank: int) -> tuple[float, float]:
        depth = math.log(rank) / math.log(deepest) if rank else 1.0  # rank > depth: at the bottom
        x = CURVE_MARGIN + (CURVE_WIDTH - 2 * CURVE_MARGIN) * (place - places[0]) / span
        return round(x, 1), round(CURVE_MARGIN + (CURVE_HEIGHT - 2 * CURVE_MARGIN) * depth, 1)

    def describe(found: TrackedRank) -> str:
        return f"step {found.step}, epoch {found.epoch}" if is_by_step else f"epoch {found.epoch}"

    return RankCurve(
        points=tuple(point(place, found.rank) for place, found in zip(places, history, strict=True)),
        summary=" → ".join(f"{found.rank or NOTHING} at {describe(found)}" for found in (history[0], history[-1])),
        ranks=", ".join(f"{place}: {found.rank or NOTHING}" for place, found in zip(places, history, strict=True)),
    )


@dataclass(frozen=True)
class Measure:
    """The mean of a metric with its 95 % interval, nan if there are too few products."""

    mean: float
    low: float
    high: float
    num_queries: int  # for which the metric is defined


@dataclass(frozen=True)
class SegmentRow:
    """One metric for the queries of one segment, by direction."""

    segment: str
    label: str
    measures: Mapping[str, Measure]


def measure_directions(
    record: EvaluationRecord, metrics: Sequence[str], num_resamples: int = 2000
) -> dict[str, dict[str, Measure]]:
    """Return the metrics of each direction, by direction and metric."""
    return {
        name: _measure(direction, metrics, np.ones(len(direction.query_ids), dtype=bool), num_resamples)
        for name, direction in record.directions.items()
    }


def measure_segments(record: EvaluationRecord, metric: str, num_resamples: int = 2000) -> list[SegmentRow]:
    """Return one metric by segment and label, ascending, with a measure of each direction that has such queries."""
    found: dict[tuple[str, str], dict[str, Measure]] = {}
    for name, direction in record.directions.items():
        for segment, label, is_in in _segments(direction):
            measure = _measure(direction, [metric], is_in, num_resamples).get(metric)
            if measure is not None:
                found.setdefault((segment, label), {})[name] = measure
    order = {segment: idx for idx, (segment, _) in enumerate(found)}
    ordered = sorted(found.items(), key=lambda item: (order[item[0][0]], item[0][1]))
    return [SegmentRow(segment, label, measures) for (segment, label), measures in ordered]


def _segments(direction: DirectionRecord) -> Iterator[tuple[str, str, np.ndarray]]:
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
