"""Which queries a grid of hits shows: those that models disagree on, as often each way as it happens.

Evaluation records of one direction come in, `Shown` queries go out; `hits_grid` draws them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mim_lightning.analysis.record import DirectionRecord, EvaluationRecord
from mim_lightning.types import id_key

Pattern = tuple[bool, ...]  # by model: whether the first hit is right


@dataclass(frozen=True)
class ChosenQueries:
    query_ids: list[str]  # to show: disputed ones first, those of one pattern one after the other
    shares: list[float]  # hit@1 by model, over all queries that the models share
    num_shared: int
    num_disputed: int  # some models have them right at first place, others not


def directions_of(records: Mapping[str, EvaluationRecord], direction: str) -> dict[str, DirectionRecord]:
    """Return one direction of each evaluation.

    Raises:
        ValueError: an evaluation has no such direction.
    """
    for label, record in records.items():
        if direction not in record.directions:
            raise ValueError(f"--direction {direction}: {label} has none such; it has {', '.join(record.directions)}")
    return {label: record.directions[direction] for label, record in records.items()}


def choose_queries(models: Sequence[DirectionRecord], num_queries: int, seed: int = 0) -> ChosenQueries:
    """Choose queries of all models; where the models agree only as far as the disputed ones do not suffice.

    Each pattern of right and wrong stands as often as in proportion; which queries of it, a digest of seed and id
    decides.

    Raises:
        ValueError: the models share no query, or their queries are answered by other products.
    """
    places = [{query_id: row for row, query_id in enumerate(model.query_ids)} for model in models]
    shared = set(places[0]).intersection(*places[1:])
    if not shared:
        raise ValueError("the runs have no query in common: other data, or another fold")
    patterns: dict[Pattern, list[str]] = defaultdict(list)
    for query_id in sorted(shared, key=lambda query_id: id_key(f"{seed}/{query_id}")):
        rows = [rows_of[query_id] for rows_of in places]
        if len({model.unit_ids[row] for model, row in zip(models, rows, strict=True)}) > 1:
            raise ValueError(f"query {query_id} is answered by other products in one run than in another: other data")
        patterns[tuple(bool(model.ranks[row] == 1) for model, row in zip(models, rows, strict=True))].append(query_id)
    disputed = {pattern: ids for pattern, ids in patterns.items() if len(set(pattern)) > 1}
    agreed = {pattern: ids for pattern, ids in patterns.items() if len(set(pattern)) == 1}
    num_disputed = sum(map(len, disputed.values()))
    num_first = min(num_queries, num_disputed)
    groups = (_spread(disputed, num_first), _spread(agreed, min(num_queries, len(shared)) - num_first))
    return ChosenQueries(
        query_ids=[q for group in groups for pattern in sorted(group, reverse=True) for q in group[pattern]],
        shares=[
            sum(len(ids) for pattern, ids in patterns.items() if pattern[model]) / len(shared)
            for model in range(len(models))
        ],
        num_shared=len(shared),
        num_disputed=num_disputed,
    )


def _spread(patterns: Mapping[Pattern, list[str]], count: int) -> dict[Pattern, list[str]]:
    """Return the first queries of each pattern, as many as its share of `count` (largest remainders)."""
    total = sum(map(len, patterns.values()))
    quotas = {pattern: count * len(ids) / total for pattern, ids in patterns.items()}
    sizes = {pattern: int(quota) for pattern, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda pattern: (sizes[pattern] - quotas[pattern], pattern))
    for pattern in by_remainder[: count - sum(sizes.values())]:
        sizes[pattern] += 1
    return {pattern: ids[: sizes[pattern]] for pattern, ids in patterns.items() if sizes[pattern]}
