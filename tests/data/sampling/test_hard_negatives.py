"""The order of hard negatives: every row once from every position, and rows beside rows of their mined products."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from mim_lightning.data.sampling.hard_negatives import (
    HardNegativeOrder,
    HardNegativeSettings,
    MiningSettings,
    gather,
)
from mim_lightning.data.sampling.negative_table import NegativeTable, read_negatives, to_lists, write_negatives
from mim_lightning.data.sampling.order import BatchOrder, EpochSettings
from mim_lightning.ids import NO_KEY, hash_id
from tests.data.rows import ColumnSet, random_sizes


def random_order(seed: int) -> HardNegativeOrder:
    rng = np.random.default_rng(seed)
    sizes = random_sizes(rng)
    num_rows = sum(sizes)
    products = rng.integers(0, max(2, num_rows // 3), num_rows)
    negatives = rng.integers(-1, max(2, num_rows // 3), (num_rows, 5))
    return HardNegativeOrder(
        tuple(sizes),
        int(rng.integers(2, 12)),
        seed,
        num_streams=int(rng.integers(1, min(4, len(sizes)) + 1)),
        window=int(rng.integers(1, 6)),
        query_keys=np.arange(num_rows),
        product_keys=products,
        tables={1: NegativeTable(np.arange(num_rows), negatives)},
        num_negatives=int(rng.integers(1, 6)),
    )


def batches_of(order: BatchOrder, epoch: int, start: int = 0) -> list[list[int]]:
    return [batch.tolist() for batch in order.batches(epoch, start)]


@pytest.mark.parametrize("seed", range(30))
def test_every_row_once_from_every_position(seed: int) -> None:
    order = random_order(seed)
    whole = batches_of(order, 1)
    assert sorted(number for batch in whole for number in batch) == list(range(order.num_samples))
    for num_done in range(len(whole) + 1):
        start = min(num_done * order.global_batch_size, order.num_samples)
        assert batches_of(order, 1, start) == whole[num_done:]
    shuffled = replace(order, tables={})
    assert batches_of(order, 0) == batches_of(shuffled, 0), "before its first pass a table changes nothing"
    later = replace(order, tables={**order.tables, 2: NegativeTable(np.empty(0, int), np.empty((0, 1), int))})
    assert batches_of(later, 1) == whole, "nor one of a later pass"


def test_rows_stand_beside_rows_of_their_negatives() -> None:
    # products 0 to 49 in pairs that are negatives of each other, two rows each
    products = np.repeat(np.arange(50), 2)
    negatives = np.stack([np.full(100, NO_KEY), products ^ 1, np.full(100, 1000)], axis=1)
    rows = gather(products, negatives, 1, np.random.default_rng(0))
    pairs = products[rows].reshape(-1, 2)
    assert sorted(rows.tolist()) == list(range(100))
    assert (pairs[:, 0] ^ 1 == pairs[:, 1]).all()
    assert len({tuple(pair) for pair in pairs[:10].tolist()}) > 5, "groups follow each other at random"
    three = gather(products, np.stack([products ^ 1, products ^ 2], axis=1), 2, np.random.default_rng(0))
    position = np.argsort(three)
    is_near = [
        abs(position[row] - position[other]) <= 2
        for row in range(100)
        for other in np.flatnonzero(products == products[row] ^ 2)
    ]
    assert np.mean(is_near) > 0.2, "and several negatives stand beside a row"


def test_tables_of_ids_and_of_keys_are_read(tmp_path: Path) -> None:
    ids = {"query_id": ["b", "a"], "negative_ids": [["x", "y"], []], "positive_score": [0.5, 0.2]}
    keys = {
        "query_key": [hash_id("b"), hash_id("a")],
        "negative_keys": [[hash_id("x"), hash_id("y")], []],
    }
    for columns in (ids, keys):
        write_negatives(tmp_path / "t.parquet", columns)
        found = read_negatives(tmp_path / "t.parquet", "table=t").find(np.array([hash_id(name) for name in "abc"]))
        assert found.tolist() == [[NO_KEY] * 2, [hash_id("x"), hash_id("y")], [NO_KEY] * 2]
    assert to_lists(np.array([[3, 4], [5, NO_KEY], [6, 7]]), np.array([2, 1, 0])).to_pylist() == [[3, 4], [5], []]
    pyarrow.parquet.write_table(pa.table({"query": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="table=t: needs the columns query_id and negative_ids; it has query"):
        read_negatives(tmp_path / "t.parquet", "table=t")
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="damaged"):
        read_negatives(tmp_path / "t.parquet", "table=t")
    with pytest.raises(ValueError, match="table=t: no such file"):
        read_negatives(tmp_path / "none.parquet", "table=t")


def test_a_table_of_other_data_is_refused(tmp_path: Path) -> None:
    shards = ColumnSet([4], keys=np.arange(4), product_keys=np.arange(4))
    settings = HardNegativeSettings(table=str(tmp_path / "t.parquet"))
    for columns, what in (
        ({"query_key": [7], "negative_keys": [[1]]}, "queries"),
        ({"query_key": [1], "negative_keys": [[7]]}, "products"),
    ):
        write_negatives(tmp_path / "t.parquet", columns)
        with pytest.raises(ValueError, match=rf"data\.sampling\.table=.*: none of its {what} is in the training rows"):
            settings.for_shards(shards, EpochSettings(2))
    write_negatives(tmp_path / "t.parquet", {"query_key": [1], "negative_keys": [[2]]})
    order = settings.for_shards(shards, EpochSettings(4))
    batches = [batches_of(order, epoch)[0] for epoch in range(40)]
    # always, if row 1 is reached before row 2; in a quarter of the cases by chance
    assert np.mean([batch.index(2) == batch.index(1) + 1 for batch in batches]) > 0.45


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_relative_score": 1.5}, r"mining\.max_relative_score=1\.5: give a fraction"),
        ({"margin": -0.1}, r"mining\.margin=-0\.1: give a difference"),
        ({"num_candidates": 30, "depth": 20}, r"mining\.num_candidates=30: give 1 to mining\.depth=20"),
    ],
)
def test_values_out_of_range_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MiningSettings(**values)
    with pytest.raises(ValueError, match=r"data\.sampling\.every_n_epochs=0"):
        HardNegativeSettings(every_n_epochs=0)
