"""Shuffled order: every sample once an epoch, from any position, for any sizes of shards."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import numpy as np
import pytest

from mim_lightning.data.sampling.grouped import EpochLayout
from mim_lightning.data.sampling.order import EpochSettings, read_column
from mim_lightning.data.sampling.shuffled import ShuffledOrder, ShuffledSettings
from tests.data.rows import ColumnSet


def random_plan(seed: int) -> ShuffledOrder:
    rng = random.Random(seed)
    sizes = tuple(rng.randint(1, 30) for _ in range(rng.randint(1, 12)))
    return ShuffledOrder(
        sizes,
        global_batch_size=rng.randint(1, 40),
        seed=rng.randint(0, 5),
        shuffle=rng.random() < 0.8,
        num_streams=rng.randint(1, len(sizes)),
        window=rng.randint(1, 5),
    )


@pytest.mark.parametrize("seed", range(80))
def test_every_sample_once_in_full_batches(seed: int) -> None:
    plan = random_plan(seed)
    batches = list(plan.batches(epoch=seed % 3))
    assert sorted(np.concatenate(batches).tolist()) == list(range(plan.num_samples))
    assert len(batches) == plan.num_batches
    assert {len(batch) for batch in batches[:-1]} <= {plan.global_batch_size}


@pytest.mark.parametrize("seed", range(40))
def test_resumes_from_every_position(seed: int) -> None:
    plan = random_plan(seed)
    whole = [batch.tolist() for batch in plan.batches(1)]
    for num_done in range(len(whole) + 1):
        start = min(num_done * plan.global_batch_size, plan.num_samples)
        assert [batch.tolist() for batch in plan.batches(1, start)] == whole[num_done:]


def test_epochs_and_seeds_differ() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(np.concatenate(list(ShuffledOrder((40,) * 6, 16, seed, num_streams=2).batches(epoch))).tolist())

    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9
    assert order(1, 2) == order(1, 2)
    alone = ShuffledOrder((30,), 8)
    assert len({tuple(np.concatenate(list(alone.batches(epoch))).tolist()) for epoch in range(4)}) == 4


def test_stored_order_without_shuffling() -> None:
    plan = ShuffledOrder((5, 9, 3), 4, shuffle=False)
    assert np.concatenate(list(plan.batches(7))).tolist() == list(range(17))


@pytest.mark.parametrize("num_streams", [2, 3, 8])
def test_streams_give_equal_parts_from_separate_shards(num_streams: int) -> None:
    plan = ShuffledOrder((20,) * 24, global_batch_size=num_streams * 5, num_streams=num_streams)
    shards_of_lane: list[set[int]] = [set() for _ in range(num_streams)]
    for batch in plan.batches(0):
        for lane_idx, part in enumerate(np.split(batch, num_streams)):
            shards_of_lane[lane_idx] |= {int(number) // 20 for number in part}
    assert [len(shards) for shards in shards_of_lane] == [24 // num_streams] * num_streams


def test_a_stream_that_runs_short_is_filled_from_the_others() -> None:
    plan = ShuffledOrder((90, 10, 11, 9), 12, num_streams=4, seed=1)
    batches = list(plan.batches(0))
    assert [len(batch) for batch in batches] == [12] * 10
    for batch in batches[:3]:
        assert [
            len({int(np.searchsorted([90, 100, 111], n, side="right")) for n in p}) for p in np.split(batch, 4)
        ] == [1] * 4


def test_neighbors_are_shuffled() -> None:
    """A batch holds samples of many shards of the window, and other company in each epoch."""
    plan = ShuffledOrder((50,) * 16, 32, window=8)
    company: list[dict[int, set[int]]] = []
    for epoch in range(2):
        batches = [set(batch.tolist()) for batch in plan.batches(epoch)]
        assert min(len({number // 50 for number in batch}) for batch in batches[:-1]) >= 5
        company.append({number: batch for batch in batches for number in batch})
    meet_again = [len(company[0][number] & company[1][number]) - 1 for number in range(800)]
    assert np.mean(meet_again) < 31 * 0.12  # 8 of 16 shards in a window: twice the 4 % of a full shuffle


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_streams": 0}, "data.num_interleaved=0"),
        ({"num_streams": 4}, "data.num_interleaved=4: 1 to 3"),
        ({"window": 0}, "data.shuffle_window_shards"),
        ({"global_batch_size": 0}, "data.batch_size=0"),
    ],
)
def test_impossible_plans_are_refused(options: dict[str, int], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ShuffledOrder(**{"shard_sizes": (3, 3, 3), "global_batch_size": 2, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(("num_streams", "batch_size"), [(64, 4096), (1, 1024), (64, 100)])
def test_the_middle_of_400_million_samples_needs_little_memory(num_streams: int, batch_size: int) -> None:
    tracemalloc.start()
    try:
        plan = ShuffledOrder((6060,) * 66_000, batch_size, num_streams=num_streams)
        assert plan.num_samples == 399_960_000
        batches = plan.batches(3, plan.num_batches // 2 * batch_size)
        seen = np.concatenate([next(batches) for _ in range(20)])
        assert len(set(seen.tolist())) == 20 * batch_size
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("num_streams", [1, 64])
def test_the_middle_of_200_thousand_shards_needs_little_memory(num_streams: int) -> None:
    tracemalloc.start()
    try:
        plan = ShuffledOrder((2000,) * 200_000, 4096, num_streams=num_streams)
        batches = plan.batches(1, plan.num_batches // 2 * 4096)
        assert len(next(batches)) == 4096
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_settings_take_what_the_set_has() -> None:
    shards = ColumnSet([3, 4, 5])
    plan = ShuffledSettings().for_shards(shards, EpochSettings(4, seed=2, num_streams=3))
    assert plan == ShuffledOrder((3, 4, 5), 4, 2, num_streams=3, window=8)
    assert ShuffledSettings().for_shards(shards, EpochSettings(4, window=2)).state_key()["window"] == 2


@pytest.mark.parametrize(
    ("num_shards", "size", "batch_size", "num_streams", "window"),
    [
        (6, 5, 64, 1, 8),  # less than 8 shards: all of them, as ever
        (200, 2000, 4000, 1, 8),  # four batches are 8 shards
        (200, 2000, 4096, 1, 10),  # 9 hold four batches, and would leave 2 at the end
        (200, 2000, 16384, 1, 34),
        (200, 2000, 16384, 4, 10),  # of each stream
        (40, 2000, 16384, 1, 40),
        (20, 2000, 16384, 1, 20),  # no more than there are
        (9, 1, 10_000_000, 9, 8),
    ],
)
def test_a_default_window_holds_four_batches(
    num_shards: int, size: int, batch_size: int, num_streams: int, window: int
) -> None:
    settings = EpochSettings(batch_size, num_streams=num_streams)
    assert settings.window_for(num_shards * size, num_shards) == window
    assert EpochSettings(batch_size, window=3).window_for(num_shards * size, num_shards) == 3


def test_a_run_that_resumes_keeps_its_default_window() -> None:
    """A checkpoint of before windows grew with the batch has 8; a window that is set differs, and is refused."""
    shards = ColumnSet([10] * 40)
    former = ShuffledOrder(tuple(shards.sizes), 64)
    state = {"epoch": 1, "consumed": 64, **former.state_key()}
    now, settings = EpochSettings(64), ShuffledSettings()
    assert settings.for_shards(shards, now).state_key()["window"] == 40
    assert settings.for_shards(shards, now.resume(state)) == former
    assert EpochSettings(64, window=5).resume(state).window == 5
    assert now.resume({}) == now


def test_fixed_names_what_decides_the_order() -> None:
    def fixed(**changes: Any) -> dict[str, Any]:
        return ShuffledOrder(**{"shard_sizes": (4, 4), "global_batch_size": 2} | changes).state_key()

    for change, names in (
        ({"shard_sizes": (4, 5)}, ["num_samples"]),
        ({"shard_sizes": (4, 2, 2)}, ["num_shards"]),
        ({"global_batch_size": 4}, ["batch_size"]),
        ({"seed": 1}, ["seed"]),
        ({"num_streams": 2}, ["num_lanes"]),
        ({"window": 2}, ["window"]),
    ):
        assert [name for name, value in fixed(**change).items() if fixed()[name] != value] == names


def test_a_column_fits_its_set() -> None:
    shards = ColumnSet([3, 4], weights=np.ones(7), keys=np.ones(6))
    assert len(read_column(shards, "weights")) == 7
    with pytest.raises(ValueError, match=r"columns/keys.npy: 6 values for 7 rows; run prepare again"):
        read_column(shards, "keys")


@pytest.mark.parametrize("seed", range(20))
def test_consecutive_shards_are_read_in_spans(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, 8)
    shards = rng.permutation(8)
    numbers = np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1])
    whole = np.concatenate([numbers[shard_idx] for shard_idx in shards]).tolist()
    line = EpochLayout(sizes, shards)
    for first in range(len(whole) + 1):
        for stop in range(first, len(whole) + 1):
            read = [number for span in line.spans(first, stop) for number in range(*span)]
            assert read == whole[first:stop]
