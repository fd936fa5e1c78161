"""What a page shows of one query: its picture and words, the truth, and what each model answers.

Changes of a comparison, or rows of an evaluation, come in with the pictures; `Card`s go out, which the templates
only have to lay out. `page` calls it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mim_lightning.analysis.comparison.changes import Answer, Change
from mim_lightning.analysis.html.images import Picture, Pictures
from mim_lightning.analysis.record import DirectionRecord
from mim_lightning.display.numbers import NOTHING, format_ranks

CURVE_WIDTH, CURVE_HEIGHT, CURVE_EDGE = 220, 52, 5  # of the drawing, without unit


@dataclass(frozen=True)
class Hit:
    picture: Picture
    product_id: str
    score: float
    is_right: bool


@dataclass(frozen=True)
class Strip:
    """The first hits of one model."""

    label: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Curve:
    """The rank over epochs, on a logarithmic scale with rank 1 on top."""

    points: tuple[tuple[float, float], ...]
    summary: str
    ranks: str  # by epoch, in words


@dataclass(frozen=True)
class Card:
    query: Picture
    query_id: str
    text: str
    truth: Picture
    segments: Mapping[str, str]
    headline: str
    is_good: bool
    strips: tuple[Strip, ...]
    curve: Curve | None = None


def change_card(change: Change, baseline: str, pictures: Pictures, num_hits: int) -> Card:
    """Show a query of a comparison: the baseline's hits above the arm's."""
    before, after = change.before, change.after
    return Card(
        query=pictures.query(change.query_id),
        query_id=change.query_id,
        text=change.text,
        truth=pictures.product(change.unit_id),
        segments=change.segments,
        headline=f"rank {format_ranks(before.ranks)} → {format_ranks(after.ranks)}",
        is_good=change.gain > 0,
        strips=tuple(
            _strip(label, answer, pictures, num_hits) for label, answer in ((baseline, before), (change.arm, after))
        ),
    )


def query_card(
    record: DirectionRecord, row: int, pictures: Pictures, num_hits: int, history: Sequence[tuple[int, int]]
) -> Card:
    """Show a query of one evaluation, with its rank over epochs where there is a history."""
    rank = int(record.ranks[row])
    answer = Answer((rank,), record.hit_ids[row], record.hit_scores[row], record.hit_is_relevant[row])
    return Card(
        query=pictures.query(record.query_ids[row]),
        query_id=record.query_ids[row],
        text=record.texts[row],
        truth=pictures.product(record.unit_ids[row]),
        segments={name: labels[row] for name, labels in record.segments.items()},
        headline=f"rank {format_ranks((rank,))}",
        is_good=rank == 1,
        strips=(_strip("first hits", answer, pictures, num_hits),),
        curve=_curve(sorted(history)) if history else None,
    )


def spread_rows(record: DirectionRecord, size: int) -> list[int]:
    """Return rows spread evenly over the ids of right and wrong queries, in proportion to their number."""
    size = min(size, len(record.ranks))
    order = np.argsort(np.array(record.query_ids))
    is_right = record.ranks[order] == 1
    num_right = round(size * float(is_right.mean())) if size else 0
    groups = ((order[is_right], num_right), (order[~is_right], size - num_right))
    return [int(row) for rows, count in groups if count for row in _spread(rows, count)]


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def _strip(label: str, answer: Answer, pictures: Pictures, num_hits: int) -> Strip:
    hits = zip(answer.hit_ids, answer.hit_scores, answer.hit_is_relevant, strict=True)
    first = [Hit(pictures.product(i), i, score, is_right) for i, score, is_right in islice(hits, num_hits)]
    return Strip(label, tuple(first))


def _curve(history: Sequence[tuple[int, int]]) -> Curve:
    epochs = [epoch for epoch, _ in history]
    deepest = max(10, *(rank for _, rank in history))
    span = max(1, epochs[-1] - epochs[0])

    def place(epoch: int, rank: int) -> tuple[float, float]:
        depth = math.log(rank) / math.log(deepest) if rank else 1.0  # beyond the depth: at the bottom
        x = CURVE_EDGE + (CURVE_WIDTH - 2 * CURVE_EDGE) * (epoch - epochs[0]) / span
        return round(x, 1), round(CURVE_EDGE + (CURVE_HEIGHT - 2 * CURVE_EDGE) * depth, 1)

    return Curve(
        points=tuple(place(epoch, rank) for epoch, rank in history),
        summary=" → ".join(f"{rank or NOTHING} at epoch {epoch}" for epoch, rank in (history[0], history[-1])),
        ranks=", ".join(f"{epoch}: {rank or NOTHING}" for epoch, rank in history),
    )
