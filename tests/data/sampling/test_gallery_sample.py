"""The sampled gallery: all answers, the same distractors whatever the order, another draw with another seed."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mim_lightning.data.sampling import gallery_sample
from mim_lightning.data.sampling.gallery_sample import SelectedOrder, sample_gallery
from mim_lightning.ids import hash_id


class Products:
    def __init__(self, ids: list[str]) -> None:
        self.ids, self.keys = ids, np.array([hash_id(product) for product in ids], dtype=np.int64)


class Queries(list[dict[str, Any]]):
    def all_facts(self) -> Iterator[dict[str, Any]]:
        return iter(self)


ANSWERS = {"p3", "p40", "p77", "d5"}
QUERIES = Queries(
    [{"asked_ids": ["p3", "p77"], "shown_ids": ["p40"]}, {"asked_ids": ["d5", "unknown"]}, {"shown_ids": ["p3"]}]
)
# two images of every fifth product
CATALOG = [f"p{n}" for n in range(100)] + [f"p{n}" for n in range(0, 100, 5)]
OTHERS = [f"d{n}" for n in range(30)]


def drawn(catalog: list[str], others: list[str], num_distractors: int, seed: int = 0) -> set[str]:
    sets: Any = [Products(catalog), Products(others)]
    queries: Any = QUERIES
    numbers = sample_gallery(sets, queries, num_distractors, seed)
    assert all((np.diff(part) > 0).all() for part in numbers)
    rows = [shards.ids[number] for shards, part in zip(sets, numbers, strict=True) for number in part.tolist()]
    for product in set(rows):
        assert rows.count(product) == (catalog + others).count(product), "all rows of a product"
    return set(rows)


@pytest.mark.parametrize("at_once", [7, 1 << 22])
def test_all_answers_and_as_many_others_as_asked_for(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_sample, "KEYS_AT_ONCE", at_once)
    found = drawn(CATALOG, OTHERS, 20)
    assert found >= ANSWERS and len(found - ANSWERS) == 20
    assert found == drawn(CATALOG[::-1], OTHERS[::-1], 20), "the order of the catalog does not matter"
    assert found < drawn(CATALOG, OTHERS, 21), "a larger sample has the smaller one"
    other = drawn(CATALOG, OTHERS, 20, seed=1)
    assert len(other - ANSWERS) == 20 and other != found
    assert drawn(CATALOG, OTHERS, 10_000) == {*CATALOG, *OTHERS}


def test_distractors_are_a_uniform_draw() -> None:
    counts = np.zeros(100)
    for seed in range(200):
        names = drawn(CATALOG, OTHERS, 20, seed)
        counts += [f"p{n}" in names for n in range(100)]
    counts = np.delete(counts, [3, 40, 77])
    expected = 200 * 20 / 126
    assert abs(counts.mean() - expected) < 1 and counts.min() > 10 and counts.max() < 60


def test_a_pass_over_selected_rows_is_in_order() -> None:
    order = SelectedOrder(np.array([2, 3, 5, 8, 13]), 2)
    assert [part.tolist() for part in order.batches(0)] == [[2, 3], [5, 8], [13]]
    assert (order.num_samples, order.num_batches, order.shuffle) == (5, 3, False)
