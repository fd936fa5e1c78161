"""Answers of two run groups to the same queries: paired by query id within a fold, never by row.

What cannot be paired is refused: another gallery, or other relevant products of the same query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from mim_lightning.analysis.record import DirectionRecord, EvaluationRecord
from mim_lightning.analysis.run_groups import RunGroup
from mim_lightning.display.numbers import format_count


@dataclass(frozen=True)
class Part:
    """The rows of one evaluation that belong to the paired queries of its fold, in their order."""

    evaluation: EvaluationRecord
    record: DirectionRecord
    rows: np.ndarray


@dataclass(frozen=True)
class PairedSide:
    """Answers of one run group; `parts[s][f]` is the s-th run of the f-th fold."""

    label: str
    parts: tuple[tuple[Part, ...], ...]

    def scores(self, metric: str) -> np.ndarray:
        """Return a metric by run and paired query, (S, Q) float64; nan where it is undefined for a query.

        Raises:
            ValueError: a run has no such metric.
        """
        for part in chain.from_iterable(self.parts):
            if metric not in part.record.scores:
                raise ValueError(
                    f"--metric {metric}: {part.evaluation.folder} has none in {part.record.direction}; "
                    f"it has {', '.join(part.record.scores)}"
                )
        return np.stack([np.concatenate([p.record.scores[metric][p.rows] for p in run]) for run in self.parts])

    def ranks(self) -> np.ndarray:
        """Return the rank of the first relevant product, (S, Q) int64; 0: rank > depth."""
        return np.stack([np.concatenate([part.record.ranks[part.rows] for part in run]) for run in self.parts])

    def locate(self, query: int, run: int = 0) -> tuple[Part, int]:
        """Return the evaluation of one run that has a paired query, and its row there."""
        for part in self.parts[run]:
            if query < len(part.rows):
                return part, int(part.rows[query])
            query -= len(part.rows)
        raise IndexError(query)


@dataclass(frozen=True)
class PairedDirection:
    """One direction of two run groups over the Q queries that all their runs have, fold by fold, ascending by id.

    Each fold has other queries and other models. Row s of a side's scores is the s-th run of every fold: a bootstrap
    that draws rows draws whole sets of folds.
    """

    direction: str
    query_ids: list[str]
    texts: list[str]
    unit_ids: list[str]
    segments: dict[str, list[str]]
    num_products: int
    before: PairedSide  # the baseline
    after: PairedSide
    notes: tuple[str, ...]  # what was excluded


def pair_direction(direction: str, baseline: RunGroup, group: RunGroup) -> PairedDirection:
    """Pair one direction of two run groups.

    Raises:
        ValueError: no fold or query in common, another gallery, or other relevant products.
    """
    folds = [fold for fold in baseline.records if fold in group.records]
    if not folds:
        raise ValueError(
            f"{baseline.label} has folds {list(baseline.records)}, {group.label} has {list(group.records)}"
        )
    notes = []
    excluded = sorted({*baseline.records, *group.records} - set(folds))
    if excluded:
        notes.append(f"{group.label}: folds {excluded} excluded: it or {baseline.label} lacks them")
    num_excluded = 0
    by_fold = []
    for fold in folds:
        evaluations = [*baseline.records[fold], *group.records[fold]]
        parts, num_dropped = _align(direction, evaluations)
        notes += _counting_warnings(direction, evaluations) + _version_warnings(direction, evaluations)
        num_excluded += num_dropped
        by_fold.append((parts[: len(baseline.records[fold])], parts[len(baseline.records[fold]) :]))
    if num_excluded:
        notes.append(f"{direction}: {num_excluded} queries excluded: not every run has them")
    before = _side(baseline.label, [parts for parts, _ in by_fold], notes)
    after = _side(group.label, [parts for _, parts in by_fold], notes)
    first = before.parts[0]
    if not sum(len(part.rows) for part in first):
        raise ValueError(f"{direction}: {baseline.label} and {group.label} have no query in common")
    names = [n for n in first[0].record.segments if all(n in part.record.segments for part in first)]
    return PairedDirection(
        direction=direction,
        query_ids=[part.record.query_ids[row] for part in first for row in part.rows],
        texts=[part.record.texts[row] for part in first for row in part.rows],
        unit_ids=[part.record.unit_ids[row] for part in first for row in part.rows],
        segments={name: [part.record.segments[name][row] for part in first for row in part.rows] for name in names},
        num_products=max(part.record.num_products for part in first),
        before=before,
        after=after,
        notes=tuple(notes),
    )


def _align(direction: str, evaluations: Sequence[EvaluationRecord]) -> tuple[list[Part], int]:
    """Return each evaluation's rows of the queries that all have, and how many queries not all have."""
    records = [evaluation.directions[direction] for evaluation in evaluations]
    for evaluation, record in zip(evaluations, records, strict=True):
        if "" not in (evaluation.gallery, evaluations[0].gallery) and evaluation.gallery != evaluations[0].gallery:
            raise ValueError(
                f"{direction}: {evaluations[0].folder} and {evaluation.folder} ranked different products: another "
                "gallery, not comparable"
            )
        if record.num_products != records[0].num_products:
            raise ValueError(
                f"{direction}: {evaluations[0].folder} ranked {records[0].num_products} products, "
                f"{evaluation.folder} {record.num_products}: another gallery, not comparable"
            )
    rows_of = [{query_id: row for row, query_id in enumerate(record.query_ids)} for record in records]
    shared = sorted(set(rows_of[0]).intersection(*rows_of[1:]))
    num_dropped = len(set().union(*rows_of)) - len(shared)
    parts = [
        Part(evaluation, record, np.array([rows[query_id] for query_id in shared], dtype=np.int64))
        for evaluation, record, rows in zip(evaluations, records, rows_of, strict=True)
    ]
    for part in parts[1:]:
        _validate_same_answers(parts[0], part)
    return parts, num_dropped


def _version_warnings(direction: str, evaluations: Sequence[EvaluationRecord]) -> list[str]:
    """Return a warning if the same products were ranked in other versions of the data: some may have been replaced."""
    first = evaluations[0]
    for evaluation in evaluations[1:]:
        for name in ("main", "distractors"):
            versions = first.facts.data_version(name), evaluation.facts.data_version(name)
            if versions[0] != versions[1]:
                return [
                    f"warning: {direction}: {first.folder} ranked version {versions[0]} of the data, "
                    f"{evaluation.folder} version {versions[1]}: products of the same id may differ; evaluate both on "
                    "one version"
                ]
    return []


def _counting_warnings(direction: str, evaluations: Sequence[EvaluationRecord]) -> list[str]:
    """Return a warning if the evaluations count different queries: their own means are not over the same rows.

    Raises:
        ValueError: the gallery of a query differs.
    """
    first = evaluations[0].directions[direction].counting
    for evaluation in evaluations[1:]:
        other = evaluation.directions[direction].counting
        if other == first:
            continue
        if (other or {}).get("leave_out") != (first or {}).get("leave_out"):
            raise ValueError(
                f"{direction}: {evaluations[0].folder} and {evaluation.folder} exclude different products from the "
                "gallery of a query: not comparable"
            )
        older = " (an older record does not say which it counts)" if None in (first, other) else ""
        return [
            f"warning: {direction}: {evaluations[0].folder} and {evaluation.folder} count different queries{older}; "
            "only queries that both count are compared, so means differ from their own reports"
        ]
    return []


def _validate_same_answers(one: Part, other: Part) -> None:
    for row, other_row in zip(one.rows, other.rows, strict=True):
        is_relevant = dict(zip(one.record.hit_ids[row], one.record.hit_is_relevant[row], strict=True))
        hits = zip(other.record.hit_ids[other_row], other.record.hit_is_relevant[other_row], strict=True)
        is_same = one.record.unit_ids[row] == other.record.unit_ids[other_row]
        if not is_same or any(is_relevant.get(product_id, right) != right for product_id, right in hits):
            raise ValueError(
                f"{one.record.direction}: query {one.record.query_ids[row]} has other relevant products in "
                f"{one.evaluation.folder} than in {other.evaluation.folder}: other data, not comparable"
            )


def _side(label: str, by_fold: Sequence[Sequence[Part]], notes: list[str]) -> PairedSide:
    num_runs = min(len(parts) for parts in by_fold)
    surplus = sum(len(parts) - num_runs for parts in by_fold)
    if surplus:
        excluded = format_count(surplus, "run")
        notes.append(f"{label}: {excluded} excluded: every fold has {num_runs}, only some have more")
    return PairedSide(label, tuple(zip(*(parts[:num_runs] for parts in by_fold), strict=True)))
