"""Which queries two arms answer differently, and what each answers.

A PairedDirection comes in, `Change`s go out, largest first; `comparison` calls it, tables and pages show them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mim_lightning.analysis.comparison.pairing import PairedDirection, Side
from mim_lightning.analysis.record import RunFacts


@dataclass(frozen=True)
class Answer:
    """What an arm answers one query: the ranks of all its runs, the first hits of the run of median rank."""

    ranks: tuple[int, ...]  # of the first relevant product; 0 beyond the depth
    hit_ids: list[str]
    hit_scores: list[float]
    hit_is_relevant: list[bool]


@dataclass(frozen=True)
class Change:
    """One query in two arms."""

    direction: str
    arm: str
    query_id: str
    text: str
    unit_id: str  # a relevant product
    segments: dict[str, str]
    gain: float  # in reciprocal rank, mean over runs; -1 to 1
    before: Answer
    after: Answer
    facts: RunFacts  # of a run that has the query: where its pictures lie


def find_changes(paired: PairedDirection) -> list[Change]:
    """Return the queries whose reciprocal rank differs, the largest change first; equal ones ascend by query id."""
    return sorted(_changes(paired), key=lambda change: (-abs(change.gain), change.query_id))


def _changes(paired: PairedDirection) -> Iterator[Change]:
    before, after = paired.before.ranks(), paired.after.ranks()
    gains = _reciprocal(after).mean(axis=0) - _reciprocal(before).mean(axis=0)
    for query in np.flatnonzero(gains).tolist():
        yield Change(
            direction=paired.direction,
            arm=paired.after.label,
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


def _answer(side: Side, ranks: np.ndarray, query: int) -> Answer:
    typical = np.argsort(_reciprocal(ranks), kind="stable")[len(ranks) // 2]
    part, row = side.locate(query, int(typical))
    record = part.record
    return Answer(tuple(ranks.tolist()), record.hit_ids[row], record.hit_scores[row], record.hit_is_relevant[row])
