"""The collector in one process; `test_processes` has several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mim_lightning.metrics import EmbeddingCollector, EmbeddingTable, check_complete
from mim_lightning.types import NO_KEY
from tests.metrics.test_ranking import keys_of, quantized

NAMES, COLUMNS = ("query_image", "query_text"), ("asked_keys", "category_keys")
NUM_ROWS = 22


def collector(**settings: Any) -> EmbeddingCollector:
    return EmbeddingCollector(NAMES, COLUMNS, **settings)


def rows_of(index: Sequence[int], num_relevant: int = 2) -> dict[str, Tensor | dict[str, Tensor]]:
    """Make a batch of the given rows of one fixed set; a negative number is a padded row."""
    idx = torch.tensor(index).abs()
    targets = keys_of(60, 40)[torch.stack([idx, idx + 7], dim=1)]
    return {
        "row_keys": 1000 - idx,
        "vectors": {"query_image": quantized(NUM_ROWS, 1)[idx], "query_text": quantized(NUM_ROWS, 2, dim=3)[idx]},
        "present": {"query_image": torch.ones_like(idx, dtype=torch.bool), "query_text": idx % 3 > 0},
        "columns": {"asked_keys": targets[:, :num_relevant], "category_keys": idx % 5},
        "valid": torch.tensor(index) >= 0,
    }


def assert_same(left: EmbeddingTable, right: EmbeddingTable) -> None:
    assert torch.equal(left.row_keys, right.row_keys)
    for part in ("vectors", "present", "columns"):
        ours, theirs = getattr(left, part), getattr(right, part)
        assert list(ours) == list(theirs)
        for name in ours:
            assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name


def table_of(*batches: Sequence[int]) -> EmbeddingTable:
    metric = collector()
    for batch in batches:
        metric.update(**rows_of(batch))
    return metric.take_table()


def test_rows_are_unique_and_sorted_whatever_the_batches() -> None:
    table = table_of(range(NUM_ROWS))
    assert table.row_keys.tolist() == list(range(1000 - NUM_ROWS + 1, 1001))
    assert torch.equal(table.vectors["query_image"], quantized(NUM_ROWS, 1).flip(0))
    mixed = torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(0)).tolist()
    assert_same(table, table_of(mixed[:5], [-3, -4], mixed[5:], mixed[3:9]))


def test_padding_counts_nowhere() -> None:
    metric = collector()
    padded = rows_of([0, 1, -2])
    padded["vectors"]["query_image"][2] = torch.nan
    metric.update(**padded)
    assert_same(metric.take_table(), table_of([0, 1]))


def test_one_row_keeps_its_shape() -> None:
    table = table_of([4])
    assert table.row_keys.shape == (1,) and table.columns["asked_keys"].shape == (1, 2)
    assert table.vectors["query_text"].shape == (1, 3)


def test_batches_may_differ_in_the_number_of_relevant_products() -> None:
    metric = collector()
    for batch, width in (([0, 1], 1), ([2], 0), ([3], 2)):
        metric.update(**rows_of(batch, width))
    targets = metric.take_table().columns["asked_keys"].flip(0)
    full = rows_of([0, 1, 2, 3])["columns"]["asked_keys"]
    full[:2, 1], full[2] = NO_KEY, NO_KEY
    assert torch.equal(targets, full)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_most_complete_of_repeated_rows_is_kept_whatever_the_order(order: tuple[int, ...]) -> None:
    batch = rows_of([1, 1, 1])
    batch["present"]["query_text"] = torch.tensor([False, True, True])
    batch["vectors"]["query_text"] = torch.tensor([[0.0] * 3, [0.5] * 3, [0.25] * 3])
    metric = collector()
    metric.update(**{k: _pick(part, torch.tensor(order)) for k, part in batch.items()})
    assert metric.take_table().vectors["query_text"].tolist() == [[0.25] * 3]


def _pick(part: Tensor | dict[str, Tensor], order: Tensor) -> Tensor | dict[str, Tensor]:
    return {n: p[order] for n, p in part.items()} if isinstance(part, dict) else part[order]


def test_vectors_of_another_width_are_not_padded() -> None:
    metric = collector()
    metric.update(**rows_of([0]))
    batch = rows_of([1])
    batch["vectors"]["query_text"] = torch.ones(1, 9)
    with pytest.raises(ValueError, match=r"vectors_query_text: is \(9,\) wide, earlier batches \(3,\)"):
        metric.update(**batch)


def test_a_table_is_handed_over_and_a_new_pass_starts() -> None:
    metric = collector()
    metric.update(**rows_of([0, 1]))
    assert len(metric.take_table()) == 2
    assert len(metric.take_table()) == 0
    metric.update(**rows_of([2]))
    metric.reset()
    metric.update(**rows_of([5]))
    assert metric.take_table().row_keys.tolist() == [995]


def test_rows_in_order_are_not_copied_and_arrays_grow_where_more_come_than_expected() -> None:
    for num_expected in (0, NUM_ROWS, 2 * NUM_ROWS):
        metric = collector(num_rows=num_expected)
        order = list(range(NUM_ROWS - 1, -1, -1))  # ascending by key
        for start in range(0, NUM_ROWS, 4):
            metric.update(**rows_of(order[start : start + 4], num_relevant=1 + start % 3 // 2))
        kept = metric._parts["vectors_query_image"]
        table = metric.take_table()
        assert table.vectors["query_image"].data_ptr() == kept.data_ptr()
        assert torch.equal(table.vectors["query_image"], quantized(NUM_ROWS, 1).flip(0))
        assert num_expected == 0 or len(kept) == num_expected


def test_half_precision_is_kept_as_float32_unless_chosen() -> None:
    batch = rows_of([0, 1])
    batch["vectors"] = {name: part.bfloat16() for name, part in batch["vectors"].items()}
    for dtype in (torch.float32, torch.float16):
        metric = collector(dtype=dtype)
        metric.update(**batch)
        table = metric.take_table()
        assert {part.dtype for part in table.vectors.values()} == {dtype}
        kept = {name: part.float() for name, part in table.vectors.items()}
        assert_same(replace(table, vectors=kept), table_of([0, 1]))


def test_a_partial_pass_is_refused_with_both_counts() -> None:
    table = table_of(range(7))
    check_complete(table, 7, "queries")
    with pytest.raises(ValueError, match="queries: 7 embedded, 9 expected"):
        check_complete(table, 9, "queries")
