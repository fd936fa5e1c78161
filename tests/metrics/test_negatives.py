"""Hard negatives against a naive choice in plain Python, with guards by id, group and score."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from mim_lightning.metrics import EmbeddingTable
from mim_lightning.metrics.negatives import Guard, choose_negatives, mine_negatives
from mim_lightning.types import NO_KEY, Direction

NONE = torch.empty(0, dtype=torch.int64)


def table(keys: torch.Tensor, vectors: dict[str, torch.Tensor], **columns: torch.Tensor) -> EmbeddingTable:
    none = torch.full((len(keys), 1), NO_KEY)
    ids = {"query_keys": keys, "product_keys": keys, "asked_keys": none, "asked_grades": none, "shown_keys": none}
    ids |= {"category_keys": none[:, 0]}
    present = {name: torch.ones(len(keys), dtype=torch.bool) for name in vectors}
    return EmbeddingTable(keys, vectors, present, {**ids, **columns})


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("relative", "margin"), [(0.9, 0.0), (None, 0.0), (1.0, 0.2)])
def test_mined_as_by_a_naive_choice(seed: int, relative: float | None, margin: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    # quantized: every score is exact
    queries = torch.randint(-2, 3, (9, 4), generator=generator) / 4
    products = torch.randint(-2, 3, (14, 4), generator=generator) / 4
    relevant = torch.randint(-1, 14, (9, 2), generator=generator)
    members, groups = torch.tensor([2, 3, 7, 8, 9]), torch.tensor([2, 2, 7, 7, 7])
    guard = Guard(relative, margin, members, groups)
    mined = mine_negatives(
        "d",
        Direction("query_image", "product_image"),
        table(torch.arange(9), {"query_image": queries}, shown_keys=relevant),
        table(torch.arange(14), {"product_image": products}),
        {},
        partial(choose_negatives, num_negatives=3, guard=guard),
        depth=12,
    )
    group_of = {key: key for key in range(14)} | dict(zip(members.tolist(), groups.tolist(), strict=True))
    answerable = [row for row in range(9) if relevant[row].amax() >= 0]
    assert mined.query_keys.tolist() == answerable
    for place, row in enumerate(answerable):
        own = {key for key in relevant[row].tolist() if key >= 0}
        scores = [float(queries[row] @ product) for product in products]
        ranked = sorted(range(14), key=lambda key: (-scores[key], key))[:12]
        positive = max((scores[key] for key in ranked if key in own), default=-math.inf)
        limit = positive - (1 - (relative or 1)) * abs(positive) - margin if math.isfinite(positive) else -math.inf
        limit = math.inf if relative is None and not margin else limit
        others = [key for key in ranked if key not in own]
        is_grouped = {key: group_of[key] in {group_of[one] for one in own} for key in others}
        kept = [key for key in others if not is_grouped[key] and scores[key] <= limit + 1e-7][:3]
        assert [key for key in mined.product_keys[place].tolist() if key != NO_KEY] == kept
        assert [score for score in mined.scores[place].tolist() if math.isfinite(score)] == [
            scores[key] for key in kept
        ]
        assert int(mined.num_grouped[place]) == sum(is_grouped[key] for key in others[:3])
        assert int(mined.num_close[place]) == sum(
            scores[key] > limit + 1e-7 and not is_grouped[key] for key in others[:3]
        )


def test_statistics_say_what_was_kept_and_dropped() -> None:
    keys, scores = torch.tensor([[5, 1, 2, 3]]), torch.tensor([[1.0, 0.97, 0.8, 0.6]])
    choose = partial(choose_negatives, torch.tensor([0]), keys, scores, torch.tensor([[5]]), 2)
    found = choose(Guard(0.95, 0.0, NONE, NONE))
    assert found.product_keys.tolist() == [[2, 3]]
    assert found.statistics() == pytest.approx(
        {"per_query": 2.0, "relative_score": 0.7, "dropped_by_group": 0.0, "dropped_by_score": 1 / 3}
    )
    assert "2.0 of each of 1 query, at 70% of the relevant product's score" in found.describe()
    assert choose(Guard(0.5, 0.0, NONE, NONE)).product_keys.tolist() == [[NO_KEY, NO_KEY]]
