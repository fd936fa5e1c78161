"""A loader names the shards that it needs next: before it needs them, until it has finished them, and no longer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mim_lightning.data.loading.loader import StreamLoader, _ListedRequests
from mim_lightning.data.loading.rank_sampler import PREFETCH_FACTOR, BatchRequest, RankSampler
from mim_lightning.data.sampling.shuffled import ShuffledOrder, sequential_order
from mim_lightning.data.shards.files import ShardPlan


class PlannedSet:
    """The shards of a set at an address, without files; keeps what is needed, and what was asked for."""

    def __init__(self, sizes: list[int], prefetch_shards: int, cache_room: int | None = None) -> None:
        self.cache_room = cache_room
        self.sizes, self.prefetch_shards, self.folder = sizes, prefetch_shards, "set"
        self.starts = np.append(0, np.cumsum(sizes))
        self.needed: dict[str, tuple[int, ...]] = {}
        self.downloaded: list[int] = []
        self.finished: list[int] = []
        self.num_passes = 0

    def __len__(self) -> int:
        return int(self.starts[-1])

    def shards_of(self, numbers: Any) -> np.ndarray:
        return self.starts.searchsorted(numbers, "right") - 1

    def shard_bytes(self, shard_idx: int) -> int:
        return self.sizes[shard_idx]  # a byte a row

    def plan(self, plan: ShardPlan) -> None:
        self.needed[plan.reader] = plan.needed
        self.downloaded += plan.new
        self.finished += plan.finished
        self.num_passes += plan.is_new_pass

    def stop(self, reader: str) -> None:
        del self.needed[reader]

    @property
    def all_needed(self) -> set[int]:
        return {idx for needed in self.needed.values() for idx in needed}


@pytest.mark.parametrize("prefetch_shards", [1, 2, 9])
@pytest.mark.parametrize(("num_workers", "num_streams"), [(0, 1), (2, 3)])
def test_shards_are_needed_from_before_their_first_batch_to_their_last(
    prefetch_shards: int, num_workers: int, num_streams: int
) -> None:
    shards: Any = PlannedSet([4] * 15, prefetch_shards)
    order = ShuffledOrder(tuple(shards.sizes), 6, seed=1, window=2, num_streams=num_streams)
    sampler = RankSampler(shards, order, 1, 2, num_workers=num_workers)
    read: list[set[int]] = []
    needed_before: set[int] = set()
    for epoch in range(3):
        sampler.epoch = epoch
        for request in sampler:
            now = set(shards.shards_of(request.numbers).tolist())
            num_before = max(0, 2 * num_workers - 1)
            recent = set().union(*read[max(0, len(read) - num_before) :], now)
            assert recent <= shards.all_needed, "what a worker may still read is kept"
            assert not read or now <= needed_before, "and what is read now was named before"
            ahead = shards.all_needed - recent
            assert len(ahead) >= min(prefetch_shards, 3), "a pass goes on into the next one"
            assert len(ahead) < prefetch_shards + 2 * 2 * num_streams + 2, "and not far"
            needed_before = shards.all_needed
            read.append(now)
    assert len(shards.needed) == 1, "one reader, over all epochs"
    assert num_streams > 1 or shards.num_passes == 3  # a rank of several reads other shards in each pass
    downloads = [shards.downloaded.count(idx) - shards.finished.count(idx) for idx in range(15)]
    assert downloads == [int(idx in shards.all_needed) for idx in range(15)], "all else is finished"


def test_another_order_lets_the_running_pass_read_ahead_and_plans_the_next_one_anew() -> None:
    shards: Any = PlannedSet([4] * 15, 3)
    one, other = (ShuffledOrder(tuple(shards.sizes), 6, seed=seed, window=2) for seed in (1, 2))
    sampler = RankSampler(shards, one, 0, 1)
    loader: Any = SimpleNamespace(ranks=sampler)
    for num, request in enumerate(sampler):
        if num == 1:
            StreamLoader.use_order(loader, other)
        assert {*shards.shards_of(request.numbers).tolist()} <= shards.all_needed and len(shards.all_needed) > 2
    sampler.epoch = 1
    request = next(iter(sampler))
    assert request.numbers == next(iter(other.batches(1))).tolist() and len(shards.needed) == 1
    assert {*shards.shards_of(np.concatenate([*other.batches(1)][:2])).tolist()} <= shards.all_needed


@pytest.mark.parametrize(("room", "num_ahead"), [(4, 1), (16, 2), (20, 3), (80, 9)])
def test_no_more_is_downloaded_ahead_than_the_cache_holds(room: int, num_ahead: int) -> None:
    shards: Any = PlannedSet([4] * 40, 9, room)
    sampler = RankSampler(shards, ShuffledOrder(tuple(shards.sizes), 2, seed=1, window=2), 0, 1)
    most = 0
    for request in sampler:
        ahead = shards.all_needed - set(shards.shards_of(request.numbers).tolist())
        most = max(most, len(ahead))
        assert ahead, "one is always downloaded ahead"
        if room >= 16:  # the window, and one ahead; a batch may bring a second one
            assert 4 * len(shards.all_needed) <= room + 4
    assert num_ahead <= most <= 11


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_shard_is_finished_as_soon_as_no_worker_can_be_reading_it(num_workers: int) -> None:
    shards: Any = PlannedSet([4] * 12, 1)
    sampler = RankSampler(shards, sequential_order(shards, 4), 0, 1, num_workers=num_workers)
    for num_before, request in enumerate(sampler):
        assert request.numbers[0] == 4 * num_before, "a batch of each shard"
        num_requested = max(1, num_workers * PREFETCH_FACTOR)  # a loader asks for no more than it has not had yet
        assert shards.finished == [*range(num_before + 1 - num_requested)]


def test_a_pass_in_stored_order_ends() -> None:
    shards: Any = PlannedSet([4] * 6, 2)
    sampler = RankSampler(shards, sequential_order(shards, 4), 0, 1)
    for _ in range(2):
        assert [request.numbers[0] for request in sampler] == [0, 4, 8, 12, 16, 20]
        assert not shards.needed
    assert shards.downloaded == [0, 1, 2, 3, 4, 5] * 2
    assert shards.finished == [0, 1, 2, 3, 4] * 2


def test_chosen_samples_are_planned_in_their_order() -> None:
    shards: Any = PlannedSet([4] * 6, 1)
    requests = [
        BatchRequest(0, start, numbers, 0) for start, numbers in enumerate([[21, 2], [9, 8], [3, 22], [17, 16]])
    ]
    batches = iter(_ListedRequests(shards, requests, 0))
    assert next(batches) is requests[0]
    assert shards.all_needed == {0, 5, 2}, "those of this batch, and one that a later batch is the first to need"
    assert list(batches) == requests[1:]
    assert shards.downloaded == [0, 5, 2, 4] and not shards.needed


def test_another_position_is_another_plan() -> None:
    shards: Any = PlannedSet([4] * 12, 2)
    sampler = RankSampler(shards, ShuffledOrder(tuple(shards.sizes), 4, seed=1, window=2), 0, 1)
    batches = iter(sampler)
    for _ in range(3):
        next(batches)
    sampler.start = 24
    first = next(iter(sampler))
    assert len(shards.needed) == 1
    assert set(shards.shards_of(first.numbers).tolist()) <= shards.all_needed


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_downloads_the_shards_of_its_own_streams(rank: int) -> None:
    shards: Any = PlannedSet([4] * 12, 2)
    order = ShuffledOrder(tuple(shards.sizes), 8, seed=1, window=2, num_streams=2)
    read = {idx for request in RankSampler(shards, order, rank, 2) for idx in shards.shards_of(request.numbers)}
    first_epoch = np.random.default_rng([1, 0]).permutation(12)
    assert read == set(first_epoch[:6].tolist() if rank == 0 else first_epoch[6:].tolist())
    assert set(shards.finished) <= read <= set(shards.downloaded)
