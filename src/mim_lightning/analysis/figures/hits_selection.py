"""Selection of the queries that a figure of hits shows: first those on which models disagree, in proportion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mim_lightning.analysis.record import DirectionRecord, EvaluationRecord
from mim_lightning.types import id_key

Pattern = tuple[bool, ...]  # by model: whether the first hit is relevant


@dataclass(frozen=True)
class SelectedQueries:
    """Queries to show, and hit@1 over all queries that the models share."""

    query_ids: list[str]  # disputed ones first, sorted by pattern
    hit_rates: list[float]  # hit@1 by model
    num_shared: int
    num_disputed: int  # on which the models disagree


def directions_of(records: Mapping[str, EvaluationRecord], direction: str) -> dict[str, DirectionRecord]:
    """Return one direction of each evaluation.

    Raises:
        ValueError: an evaluation lacks the direction.
    """
    for label, record in records.items():
        if direction not in record.directions:
            raise ValueError(
                f"--direction {direction}: {label} has no such direction; it has {', '.join(record.directions)}"
            )
    return {label: record.directions[direction] for label, record in records.items()}


def select_queries_to_plot(models: Sequence[DirectionRecord], num_queries: int, seed: int = 0) -> SelectedQueries:
    """Select queries that all models have; those on which they agree only if there are too few others.

    Patterns of relevant and irrelevant first hits are shown in proportion; within a pattern, queries are drawn by a
    hash of seed and id.

    Raises:
        ValueError: the models share no query, or have other relevant products for one.
    """
    rows_by_id = [{query_id: row for row, query_id in enumerate(model.query_ids)} for model in models]
    shared = set(rows_by_id[0]).intersection(*rows_by_id[1:])
    if not shared:
        raise ValueError("the runs have no query in common: other data, or another fold")
    patterns: dict[Pattern, list[str]] = defaultdict(list)
    for query_id in sorted(shared, key=lambda query_id: id_key(f"{seed}/{query_id}")):
        rows = [rows_of[query_id] for rows_of in rows_by_id]
        if len({model.unit_ids[row] for model, row in zip(models, rows, strict=True)}) > 1:
            raise ValueError(f"query {query_id} has other relevant products in one run than in another: other data")
        patterns[tuple(bool(model.ranks[row] == 1) for model, row in zip(models, rows, strict=True))].append(query_id)
    disputed = {pattern: ids for pattern, ids in patterns.items() if len(set(pattern)) > 1}
    agreed = {pattern: ids for pattern, ids in patterns.items() if len(set(pattern)) == 1}
    num_disputed = sum(map(len, disputed.values()))
    num_first = min(num_queries, num_disputed)
    groups = (_spread(disputed, num_first), _spread(agreed, min(num_queries, len(shared)) - num_first))
    return SelectedQueries(
        query_ids=[q for group in groups for pattern in sorted(group, reverse=True) for q in group[pattern]],
        hit_rates=[
            sum(len(ids) for pattern, ids in patterns.items() if pattern[model]) / len(shared)
            for model in range(len(models))
        ],
        num_shared=len(shared),
        num_disputed=num_disputed,
    )


def _spread(patterns: Mapping[Pattern, list[str]], count: int) -> dict[Pattern, list[str]]:
    """Return the first queries of each pattern, `count` in all, in proportion (largest remainders)."""
    total = sum(map(len, patterns.values()))
    quotas = {pattern: count * len(ids) / total for pattern, ids in patterns.items()}
    sizes = {pattern: int(quota) for pattern, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda pattern: (sizes[pattern] - quotas[pattern], pattern))
    for pattern in by_remainder[: count - sum(sizes.values())]:
        sizes[pattern] += 1
    return {pattern: ids[: sizes[pattern]] for pattern, ids in patterns.items() if sizes[pattern]}
