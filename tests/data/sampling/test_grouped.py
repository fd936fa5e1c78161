"""Grouped order: rows of one product in one batch, every row once, similar products in one batch on request."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.sampling.group_packing import arrange
from mim_lightning.data.sampling.grouped import GroupedOrder, GroupedSettings
from mim_lightning.data.sampling.order import EpochSettings
from mim_lightning.losses.contrastive import info_nce
from mim_lightning.losses.objective import Objective, Pair
from mim_lightning.types import NO_KEY, Embeddings, Sample, TextSpec
from tests.data.conftest import tokenize
from tests.data.rows import ColumnSet, random_sizes, shop_columns


def random_order(seed: int) -> GroupedOrder:
    rng = np.random.default_rng(seed)
    sizes = random_sizes(rng)
    k, num_streams = int(rng.integers(1, 5)), int(rng.integers(1, min(4, len(sizes)) + 1))
    same_category_fraction = float(rng.choice([0.0, 0.5, 1.0]))
    columns = shop_columns(rng, sum(sizes), max(1, sum(sizes) // 4), 4)
    return GroupedOrder(
        tuple(sizes),
        k * int(rng.integers(4 * num_streams, 4 * num_streams + 8)),
        columns["product_keys"],
        k,
        columns["category_keys"] if same_category_fraction and (columns["category_keys"] >= 0).any() else None,
        same_category_fraction if (columns["category_keys"] >= 0).any() else 0.0,
        seed=seed,
        num_streams=num_streams,
        window=int(rng.integers(1, 6)),
    )


def groups_of(order: GroupedOrder, batch: np.ndarray) -> list[int]:
    """Return the products of those k neighbors of a batch that are of one product."""
    keys = order.product_keys[batch].reshape(-1, order.samples_per_product)
    return [int(slot[0]) for slot in keys if len(set(slot.tolist())) == 1 and slot[0] != NO_KEY]


@pytest.mark.parametrize("seed", range(60))
def test_every_row_once_in_full_batches_from_every_position(seed: int) -> None:
    order = random_order(seed)
    batches = [batch.tolist() for batch in order.batches(seed % 3)]
    assert sorted(number for batch in batches for number in batch) == list(range(order.num_samples))
    assert len(batches) == order.num_batches
    assert {len(batch) for batch in batches[:-1]} <= {order.global_batch_size}
    for num_done in range(len(batches) + 1):
        start = min(num_done * order.global_batch_size, order.num_samples)
        assert [batch.tolist() for batch in order.batches(seed % 3, start)] == batches[num_done:]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_all_whole_groups_are_built_and_each_is_in_one_batch(seed: int, k: int) -> None:
    """A product of n rows gives n // k groups, no two of them in a batch while there are batches enough."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, rng.integers(20, 60), 600)
    order = GroupedOrder((200,) * 3, 24, keys, k, seed=seed)
    made = [groups_of(order, batch) for batch in order.batches(0)]
    total = Counter(product for products in made for product in products)
    # leftovers can only meet where they fill no slot: fewer than k rows a product
    assert total == {product: n // k for product, n in Counter(keys.tolist()).items() if n >= k}
    for product, count in total.items():
        if count <= 600 // 24:
            assert max(products.count(product) for products in made) == 1


def test_leftovers_stay_together() -> None:
    """Products of three rows, four of which make a slot: three in four stay whole."""
    keys = np.repeat(np.arange(100), 3)
    order = GroupedOrder((300,), 20, keys, 4)
    slots = np.concatenate(list(order.batches(0))).reshape(-1, 4)
    whole = sum(max(Counter(keys[slot].tolist()).values()) == 3 for slot in slots)
    by_chance = np.random.default_rng(0).permutation(300).reshape(-1, 4)
    assert sum(max(Counter(keys[slot].tolist()).values()) == 3 for slot in by_chance) == 0
    assert whole >= 50


def test_uneven_leftovers_fit_each_other() -> None:
    """Products of three rows and as many of one, or of two: no product is torn."""
    for sizes in ([3, 1] * 40, [2] * 80):
        keys = np.repeat(np.arange(len(sizes)), sizes)
        order = GroupedOrder((len(keys),), 20, keys, 4)
        slots = [set(keys[slot].tolist()) for slot in np.concatenate(list(order.batches(0))).reshape(-1, 4)]
        assert sum(map(len, slots)) == len(sizes)


def test_other_rows_share_a_batch_in_each_epoch() -> None:
    keys = np.repeat(np.arange(30), 8)
    order = GroupedOrder((240,), 24, keys, 2)
    company = [
        {tuple(sorted(pair)) for batch in order.batches(epoch) for pair in batch.reshape(-1, 2).tolist()}
        for epoch in range(2)
    ]
    # 120 groups, each of 7 rows that a row could meet: 1 in 7 again
    assert len(company[0] & company[1]) < 120 / 7 * 2
    products = [[frozenset(groups_of(order, batch)) for batch in order.batches(epoch)] for epoch in range(2)]
    assert set(products[0]).isdisjoint(products[1])


def test_any_two_products_share_batches_and_no_two_batches_are_equal() -> None:
    keys = np.repeat(np.arange(24), 6)
    order = GroupedOrder((144,), 24, keys, 2)
    met: set[tuple[int, int]] = set()
    for epoch in range(30):
        batches = [frozenset(groups_of(order, batch)) for batch in order.batches(epoch)]
        assert len(set(batches)) == 6
        met |= {pair for batch in batches for pair in itertools.combinations(sorted(batch), 2)}
    assert len(met) == 24 * 23 / 2


def test_other_shards_are_shuffled_together_in_each_epoch() -> None:
    order = GroupedOrder((10,) * 12, 20, np.arange(120), 1, window=2)
    pairs = {frozenset((next(order.batches(epoch)) // 10).tolist()) for epoch in range(8)}
    assert len(pairs) >= 6


@pytest.mark.parametrize(("num_streams", "share"), [(1, 0.5), (2, 0.5), (1, 0.25), (1, 1.0)])
def test_hard_categories_share_a_batch(num_streams: int, share: float) -> None:
    """Of 40 categories as many rows of a batch are of one as was asked for, instead of few by chance."""
    rng = np.random.default_rng(0)
    products = rng.permutation(np.repeat(np.arange(1200), 4))
    categories = products % 40

    def shares(same_category_fraction: float) -> list[float]:
        order = GroupedOrder(
            (600,) * 8, 64, products, 2, categories, same_category_fraction, num_streams=num_streams, window=8
        )
        parts = [part for batch in order.batches(0) for part in np.split(batch, num_streams)]
        assert sorted(np.concatenate(parts).tolist()) == list(range(4800))
        return [np.bincount(categories[part]).max() / len(part) for part in parts]

    # where all of a batch is to be of one category, sizes that no batch divides leave some over
    assert min(shares(share)) >= min(share, 0.8)
    assert np.mean(shares(0.0)) < share / 2


def test_small_categories_share_a_block() -> None:
    """Categories of 4 products, blocks of 8: a batch takes two categories whole where chance would mix all."""
    products = np.repeat(np.arange(400), 2)
    order = GroupedOrder((800,), 32, products, 2, products // 4, 0.5)
    for batch in order.batches(0):
        in_category = np.sort(np.bincount(products[batch] // 4))[::-1]
        assert in_category[:2].tolist() == [8, 8]


def test_a_category_is_hard_as_often_as_it_is_large() -> None:
    products = np.repeat(np.arange(800), 2)
    categories = np.where(products < 600, 0, np.where(products < 700, 1, 2))
    order = GroupedOrder((1600,), 64, products, 2, categories, 0.5)
    most: Counter[int] = Counter()
    for epoch in range(8):
        for batch in order.batches(epoch):
            counts = np.bincount(categories[batch], minlength=3)
            most[next((small for small in (1, 2) if counts[small] >= 24), 0)] += 1
    # 600, 100 and 100 of 800 products: that part of 200 batches, give or take one an epoch
    assert abs(most[0] - 150) <= 8
    assert all(abs(most[small] - 25) <= 8 for small in (1, 2))


def test_windows_keep_reading_local_and_groups_whole() -> None:
    """Rows of a product lie in one shard: with a window of 2 of 50 shards all groups are made from neighbors."""
    products = np.repeat(np.arange(500), 4)  # 10 products a shard of 40 rows
    order = GroupedOrder((40,) * 50, 80, products, 4, num_streams=2, window=4)
    torn = 0
    for batch in order.batches(3):
        for part in np.split(batch, 2):
            assert len(set(part // 40)) <= 6
        torn += 20 - len(groups_of(order, batch))
    # a window begins inside a shard, and so inside a product, at most once
    assert torn <= 2 * 2 * 13


def test_a_small_set_and_many_streams() -> None:
    order = GroupedOrder((3, 4), 16, np.array([1, 1, 2, 2, 3, 3, 3]), 2, num_streams=2)
    (batch,) = order.batches(0)
    assert sorted(batch.tolist()) == list(range(7))
    assert list(order.batches(0, 7)) == []


def test_rows_without_product_or_category_have_no_key() -> None:
    """As one product each they fill slots by category; were they one product, categories would mix in it."""
    products, categories = np.full(48, NO_KEY), np.tile([5, 6, NO_KEY], 16)
    order = GroupedOrder((48,), 8, products, 2, categories, 1.0)
    batches = list(order.batches(0))
    assert sorted(np.concatenate(batches).tolist()) == list(range(48))
    held = sorted(sorted(set(categories[batch].tolist())) for batch in batches)
    assert held == [[NO_KEY], [NO_KEY], [5], [5], [6], [6]]


@pytest.mark.parametrize("seed", range(30))
def test_arrange_fills_every_part(seed: int) -> None:
    """Whatever the sizes of parts: as many rows as places, each once, and a hard block in each full part."""
    rng = np.random.default_rng(seed)
    k, num_parts, num_slots = (int(number) for number in rng.integers([1, 1, 2], [5, 9, 9]))
    tail = int(rng.integers(0, num_slots * k))
    num_rows = num_parts * num_slots * k + tail
    columns = shop_columns(rng, num_rows, 12, 3)
    slots_of_part = np.array([num_slots] * num_parts + [tail // k])
    for num_hard in (0, num_slots):
        places = arrange(*columns.values(), num_parts, slots_of_part, num_hard, k, np.random.default_rng(seed))
        assert sorted(places.tolist()) == list(range(num_rows))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"global_batch_size": 10, "samples_per_product": 4}, "data.batch_size=10: must be a multiple of .*product=4"),
        ({"global_batch_size": 4, "samples_per_product": 4, "num_streams": 2}, "at least data.num_interleaved=2"),
        ({"num_streams": 4}, "data.num_interleaved=4: 1 to 3"),
        ({"same_category_fraction": 0.1}, r"same_category_fraction=0.1: .* at least 2 of the 6 products"),
        (
            {"same_category_fraction": 0.5, "category_keys": np.full(30, NO_KEY)},
            "no row of the set has a category; .*",
        ),
    ],
)
def test_impossible_orders_are_refused(options: dict, word: str) -> None:
    columns = {"product_keys": np.arange(30), "category_keys": np.arange(30)}
    with pytest.raises(ValueError, match=word):
        GroupedOrder(**{"shard_sizes": (10, 10, 10), "global_batch_size": 12, **columns, **options})


def test_settings_read_the_columns_of_a_set() -> None:
    shards = ColumnSet([10, 10], product_keys=np.arange(20) // 4)
    order = GroupedSettings(samples_per_product=4).for_shards(shards, EpochSettings(8, seed=3))
    assert isinstance(order, GroupedOrder)
    assert [len(groups_of(order, batch)) for batch in order.batches(0)] == [2, 2, 1]
    with pytest.raises(ValueError, match=r"columns: has no category_keys.npy; run prepare again"):
        GroupedSettings(2, 0.5).for_shards(shards, EpochSettings(8))
    with pytest.raises(ValueError, match=r"columns/product_keys.npy: 20 values for 19 rows; run prepare again"):
        GroupedSettings().for_shards(ColumnSet([10, 9], product_keys=np.arange(20)), EpochSettings(8))
    for wrong, word in (
        ({"samples_per_product": 0}, "samples_per_product=0"),
        ({"same_category_fraction": 1.5}, "same_category_fraction=1.5"),
    ):
        with pytest.raises(ValueError, match=f"data.sampling.{word}"):
            GroupedSettings(**wrong)


def test_streams_share_the_default_window() -> None:
    shards = ColumnSet([10] * 600, product_keys=np.zeros(6000))
    settings = [EpochSettings(128, num_streams=n) for n in (1, 4, 64)] + [EpochSettings(2048)]
    windows = [GroupedSettings().for_shards(shards, epoch).state_key()["window"] for epoch in settings]
    assert windows == [512, 128, 8, 600], "the last one for four batches"


def test_rows_of_a_product_are_no_negatives_of_each_other() -> None:
    """Of a grouped batch the objective takes all k rows of a product as positives, where pairing by row would not."""
    products = np.repeat(np.arange(12), 4)
    order = GroupedOrder((48,), 16, products, 4)
    batch_rows = next(order.batches(0))
    samples = [
        Sample(int(n), {"query_text": f"q{n}", "product_text": f"p{products[n]}"}, f"q{n}", f"p{products[n]}",
               target_ids=(f"p{products[n]}",), reference_ids=(f"p{products[n]}",))
        for n in batch_rows
    ]  # fmt: skip
    spec = TextSpec(tokenize, 8)
    batch = Collate({"query_text": spec, "product_text": spec})(samples)
    generator = torch.Generator().manual_seed(0)
    vectors = {name: torch.nn.functional.normalize(torch.randn(16, 8, generator=generator)) for name in batch.rows}
    vectors["product_text"] = vectors["product_text"][batch.rows["product_text"]]
    embeddings = Embeddings(vectors, {name: torch.ones(16, dtype=torch.bool) for name in vectors})
    objective = Objective({"pair": Pair("query_text", "product_text")}, info_nce, tuple(vectors))
    result = objective(embeddings, batch)
    # 12 rows of the other three products; by row number there would be 15
    assert result.stats["negatives_per_row"] == 12
    assert result.stats["rows_with_repeated_product"] == 1
    assert len(batch.inputs["product_text"]["ids"]) == 4, "each of four products is encoded once"


def test_fixed_names_what_decides_the_order() -> None:
    def fixed(**options: float) -> dict:
        return GroupedOrder((9, 9), 4, np.arange(18), category_keys=np.arange(18), **options).state_key()  # type: ignore

    for change, saved in (
        ({"samples_per_product": 1}, "order.rows_per_product"),
        ({"same_category_fraction": 1.0}, "order.same_category"),
        ({"seed": 1}, "seed"),
        ({"num_streams": 2}, "num_lanes"),
        ({"window": 3}, "window"),
    ):
        assert [key for key, value in fixed().items() if fixed(**change)[key] != value] == [saved]
    assert fixed()["order"] == "grouped"


def test_memory_mapped_columns_are_read_by_window(tmp_path: Path) -> None:
    np.save(tmp_path / "product_keys.npy", np.arange(4000) // 4)
    keys = np.load(tmp_path / "product_keys.npy", mmap_mode="r")
    order = GroupedOrder((40,) * 100, 40, keys, 4, window=5)
    assert sorted(np.concatenate(list(order.batches(1))).tolist()) == list(range(4000))


def test_the_middle_of_400_million_samples_needs_little_memory() -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        keys = np.broadcast_to(np.int64(1), 400_000_000)
        order = GroupedOrder((2000,) * 200_000, 4096, keys, 4, keys, 0.5, num_streams=16, window=8)
        batches = order.batches(3, order.num_batches // 2 * 4096)
        seen = np.concatenate([next(batches) for _ in range(3)])
        assert len(set(seen.tolist())) == 3 * 4096
        assert tracemalloc.get_traced_memory()[1] < 150e6
    finally:
        tracemalloc.stop()
