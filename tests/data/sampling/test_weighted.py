"""Rows are drawn in proportion to their weights; the length of an epoch; resume at every position."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from mim_lightning.data.sampling.order import EpochSettings
from mim_lightning.data.sampling.weighted import WeightedOrder, WeightedSettings
from tests.data.rows import ColumnSet, random_sizes


def random_order(seed: int) -> WeightedOrder:
    rng = np.random.default_rng(seed)
    sizes = random_sizes(rng)
    weights = rng.exponential(size=sum(sizes)).astype(np.float32)
    weights[rng.random(len(weights)) < 0.2] = 0
    weights[0] = 3
    return WeightedOrder(
        tuple(sizes),
        int(rng.integers(1, 40)),
        weights,
        num_samples=int(rng.integers(1, 3 * sum(sizes))),
        seed=seed,
        num_streams=int(rng.integers(1, len(sizes) + 1)),
        window=int(rng.integers(1, 5)),
    )


def counts_of(order: WeightedOrder, epoch: int) -> np.ndarray:
    return np.bincount(np.concatenate(list(order.batches(epoch))), minlength=len(order.weights))


@pytest.mark.parametrize("seed", range(50))
def test_every_row_is_drawn_in_proportion_to_its_weight_within_one(seed: int) -> None:
    order = random_order(seed)
    counts, weights = counts_of(order, seed % 3), order.weights.astype(np.float64)
    due = weights / weights.sum() * order.num_samples
    assert counts.sum() == order.num_samples
    assert (counts >= np.floor(due - 1e-6)).all() and (counts <= np.ceil(due + 1e-6)).all()


def test_on_average_it_is_exact_and_rows_are_drawn_independently_enough() -> None:
    """Over epochs: means as due, and any two rows of a shard drawn together sometimes, neighbors too."""
    weights = np.array([0.2, 0.5, 0.5, 0.5, 0.9, 1.7, 0.5, 0.2])
    order = WeightedOrder((8,), 4, weights, num_samples=4, seed=5)
    num_epochs = 1500
    counts = np.stack([counts_of(order, epoch) for epoch in range(num_epochs)])
    due = weights / weights.sum() * 4
    spread = np.sqrt(due * np.ceil(due) / num_epochs) + 1e-3
    assert (abs(counts.mean(axis=0) - due) < 4 * spread).all()
    together = (counts > 0).T.astype(float) @ (counts > 0) / num_epochs
    assert together[1, 2] > 0.05 and together[1, 3] > 0.05
    assert abs(together[1, 2] - together[1, 6]) < 0.06, "neighbours meet as often as others"


@pytest.mark.parametrize("seed", range(20))
def test_resumes_from_every_position(seed: int) -> None:
    order = random_order(seed)
    whole = [batch.tolist() for batch in order.batches(1)]
    assert len(whole) == order.num_batches
    assert {len(batch) for batch in whole[:-1]} <= {order.global_batch_size}
    for num_done in range(len(whole) + 1):
        start = min(num_done * order.global_batch_size, order.num_samples)
        assert [batch.tolist() for batch in order.batches(1, start)] == whole[num_done:]


def test_equal_weights_give_every_row_once() -> None:
    order = WeightedOrder((7, 12, 5), 6, np.full(24, 0.1, dtype=np.float32), num_samples=24)
    assert counts_of(order, 2).tolist() == [1] * 24
    first, second = (np.concatenate(list(order.batches(epoch))).tolist() for epoch in range(2))
    assert first != second


def test_a_shard_with_large_weights_is_sampled_in_proportion() -> None:
    weights = np.concatenate([np.full(50, 9.0), np.full(50, 1.0)])
    order = WeightedOrder((50, 50), 10, weights, num_samples=200, num_streams=2)
    assert counts_of(order, 0)[:50].sum() == pytest.approx(180, abs=1)


def test_a_batch_mixes_the_shards_of_a_window() -> None:
    order = WeightedOrder((50,) * 16, 32, np.ones(800), 800, window=8)
    assert min(len(set(batch // 50)) for batch in order.batches(0)) >= 5


def test_sums_of_weights_are_made_a_few_shards_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(0).exponential(size=60)
    whole = WeightedOrder((10, 25, 5, 20), 8, weights, 90)
    expected = [batch.tolist() for batch in whole.batches(0)]
    monkeypatch.setattr("mim_lightning.data.sampling.weighted.ROWS_AT_ONCE", 50)
    parts = WeightedOrder((10, 25, 5, 20), 8, weights, 90)
    assert [batch.tolist() for batch in parts.batches(0)] == expected
    weights[58] = np.nan
    with pytest.raises(ValueError, match="sample 58: nan"):
        WeightedOrder((10, 25, 5, 20), 8, weights, 90)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_invalid_weights_are_named(bad: float) -> None:
    weights = np.ones(30)
    weights[17] = bad
    with pytest.raises(ValueError, match=f"column 'weight', sample 17: {bad} is not a weight"):
        WeightedOrder((10, 20), 4, weights, 30)


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="no row has a weight above 0"):
        WeightedOrder((10, 20), 4, np.zeros(30), 30)


def test_settings_read_the_column_of_a_set() -> None:
    shards = ColumnSet([10, 10], weights=np.arange(20, dtype=np.float32))
    assert WeightedSettings().for_shards(shards, EpochSettings(8)).num_samples == 20
    order = WeightedSettings().for_shards(shards, EpochSettings(8, num_rows=50, window=3))
    assert (order.num_samples, order.num_batches, order.window) == (50, 7, 3)
    assert counts_of(order, 0)[0] == 0
    with pytest.raises(ValueError, match=r"columns: has no weights.npy; run prepare again"):
        WeightedSettings().for_shards(ColumnSet([10]), EpochSettings(8))
    with pytest.raises(ValueError, match=r"data.rows_per_epoch=0: must be at least 1"):
        EpochSettings(8, num_rows=0)


def test_fixed_knows_other_weights() -> None:
    weights = np.ones(20)
    fixed = WeightedOrder((10, 10), 4, weights, 20).state_key()
    assert fixed == WeightedOrder((10, 10), 4, weights.copy(), 20).state_key()
    weights[3] = 2
    changed = WeightedOrder((10, 10), 4, weights, 20).state_key()
    assert [name for name in fixed if fixed[name] != changed[name]] == ["sum_of_weights"]


def test_the_middle_of_a_large_set_costs_one_number_a_shard() -> None:
    """The test's own broadcast weights cost nothing; 20 million rows in 10,000 shards."""
    weights = np.broadcast_to(np.float32(0.3), 20_000_000)
    tracemalloc.start()
    try:
        order = WeightedOrder((2000,) * 10_000, 4096, weights, 30_000_000, num_streams=64)
        batches = order.batches(3, order.num_batches // 2 * 4096)
        assert len(next(batches)) == 4096
        # of 4 million weights at a time, as float64, and whether each is good
        assert tracemalloc.get_traced_memory()[1] < 80e6
    finally:
        tracemalloc.stop()
