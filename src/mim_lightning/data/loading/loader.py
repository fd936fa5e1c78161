"""Loaders: from a shard set and an order to the batches of one rank, with a position of two integers.

Workers read only what a request names, so their number does not change a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import Any

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from mim_lightning.data.loading.batch_memory import BatchMessage, SharedBatchBuffers, make_buffers
from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.loading.corrupt_samples import CorruptSamplePolicy, LoadedBatch, SkipCounter, load_batch
from mim_lightning.data.loading.rank_sampler import PREFETCH_FACTOR, BatchRequest, RankSampler
from mim_lightning.data.loading.read_ahead import PlannedBatch, ReadAhead
from mim_lightning.data.loading.worker_processes import WorkerLoader, start_worker
from mim_lightning.data.sampling.order import STATE_KEYS, BatchOrder
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.types import Batch

DECODE_TIMEOUT = 300.0  # seconds for reading and decoding a batch, besides waiting for a store


class ShardDataset(Dataset[Any]):
    """Read and collate a BatchRequest, in the workers of a loader or in the process itself."""

    def __init__(
        self, shards: ShardSet, collate: Collate, skips: bool = False, buffers: SharedBatchBuffers | None = None
    ) -> None:
        self.shards, self.collate, self.skips, self.buffers = shards, collate, skips, buffers

    def __getitems__(self, request: BatchRequest) -> LoadedBatch | BatchMessage:
        buffer_idx, numbers, position = request.buffer_idx, request.numbers, (request.epoch, request.start)
        buffer = None if self.buffers is None or buffer_idx is None else self.buffers.to_write(buffer_idx)
        loaded = load_batch(self.shards, self.collate, numbers, request.num_padding, position, self.skips, buffer)
        return BatchMessage(loaded, self.buffers, buffer_idx) if get_worker_info() else loaded


class StreamLoader(WorkerLoader):
    """A DataLoader that knows its position and resumes from it.

    Every `iter` starts where the last one stopped; at the end of an epoch that is the next epoch. The position is that
    of the run, not of a rank, so a checkpoint of rank 0 resumes every rank. A pass in stored order (evaluation) always
    starts at the beginning.
    """

    def __init__(
        self,
        shards: ShardSet,
        collate: Collate,
        order: BatchOrder,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        policy: CorruptSamplePolicy | None = None,
        in_whole_batches: bool = False,
    ) -> None:
        policy = policy or CorruptSamplePolicy()
        num_rows = order.global_batch_size if in_whole_batches else -(-order.global_batch_size // world_size)
        num_references = 0 if collate.references is None else num_rows
        self.buffers = make_buffers(collate.prepared_specs, num_rows, num_workers, PREFETCH_FACTOR, num_references)
        self.order = order
        self.ranks = RankSampler(shards, order, rank, world_size, self.buffers, num_workers, in_whole_batches)
        self.epoch, self.consumed, self._num_passes = 0, 0, 0
        self.skipped = SkipCounter(policy, str(shards.folder), order.num_samples)
        super().__init__(
            ShardDataset(shards, collate, policy.skips, self.buffers),
            batch_sampler=self.ranks,  # type: ignore[arg-type]  # torch's stub wants lists of indices
            collate_fn=_identity_collate,  # type: ignore[arg-type]  # ShardDataset has collated already
            num_workers=num_workers,
            prefetch_factor=PREFETCH_FACTOR if num_workers else None,
            pin_memory=pin_memory,
            timeout=_batch_timeout(shards, num_workers),
            persistent_workers=num_workers > 0,
            worker_init_fn=start_worker,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if self.consumed >= self.order.num_samples:
            self.epoch, self.consumed = self.epoch + 1, 0
        if not self.order.shuffle:
            self.consumed = 0
        self.ranks.epoch, self.ranks.start = self.epoch, self.consumed
        self.skipped.restart()
        self._num_passes += 1
        pass_idx, is_complete = self._num_passes, False
        try:
            for batch, skipped in super().__iter__():
                self.skipped.add(skipped)
                self.consumed = min(self.consumed + self.order.global_batch_size, self.order.num_samples)
                yield batch
            is_complete = True
        finally:
            if not is_complete and pass_idx == self._num_passes:  # the next pass may have begun before this one ends
                self.ranks.stop()
        if self.buffers:
            self.buffers.release()

    def use_order(self, order: BatchOrder) -> None:
        """Take another order of the same batch size and length of an epoch; the pass that is running keeps its own."""
        self.ranks.order = self.order = order

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "consumed": self.consumed, **self.order.state_key()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a saved position.

        Raises:
            ValueError: the position means another sample with the present settings.
        """
        for name, value in self.order.state_key().items():
            if state.get(name) != value:
                key = f"data.{STATE_KEYS.get(name, name)}"
                raise ValueError(f"the checkpoint was made with {key}={state.get(name)}, now it is {value}")
        self.epoch, self.consumed = state["epoch"], state["consumed"]


class SequentialLoader:
    """One pass over some shards of a set, in order; no batch has rows of two shards.

    A plain iterable: Lightning would rebuild a DataLoader for prediction.
    """

    def __init__(
        self,
        shards: ShardSet,
        collate: Collate,
        shard_idxs: Sequence[int],
        batch_size: int,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._requests = _SequentialRequests(shards, list(shard_idxs), batch_size, num_workers)
        self._loader = WorkerLoader(
            ShardDataset(shards, collate),
            batch_sampler=self._requests,  # type: ignore[arg-type]  # torch's stub wants lists of indices
            collate_fn=_identity_collate,  # type: ignore[arg-type]  # ShardDataset has collated already
            num_workers=num_workers,
            pin_memory=pin_memory,
            timeout=_batch_timeout(shards, num_workers),
            worker_init_fn=start_worker,
        )

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Batch]:
        return (loaded.batch for loaded in self._loader)


def load_samples(
    shards: ShardSet, collate: Collate, numbers: Sequence[int], batch_size: int, num_workers: int, skips: bool = False
) -> Iterator[Batch]:
    """Yield batches of some samples of a set, in the order of their numbers here.

    Args:
        skips: leave samples that cannot be read without inputs, instead of raising an error.
    """
    starts = range(0, len(numbers), batch_size)
    requests = [BatchRequest(0, start, list(numbers[start : start + batch_size]), 0) for start in starts]
    num_workers = min(num_workers, len(requests))
    loader = WorkerLoader(
        ShardDataset(shards, collate, skips),
        batch_sampler=_ListedRequests(shards, requests, num_workers),  # type: ignore[arg-type]  # torch's stub again
        collate_fn=_identity_collate,  # type: ignore[arg-type]  # ShardDataset has collated already
        num_workers=num_workers,
        timeout=_batch_timeout(shards, num_workers),
        worker_init_fn=start_worker,
    )
    return (loaded.batch for loaded in loader)


@dataclass(frozen=True)
class _ListedRequests:
    """Batches of chosen samples."""

    shards: ShardSet
    requests: list[BatchRequest]
    num_workers: int

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[BatchRequest]:
        return _plan_pass(self.shards, self.requests, self.num_workers)


@dataclass(frozen=True)
class _SequentialRequests:
    """The batches of some shards, in order, generated one by one: a catalog has too many samples for a list."""

    shards: ShardSet
    shard_idxs: list[int]
    batch_size: int
    num_workers: int

    def __len__(self) -> int:
        return sum(-(-self.shards.sizes[idx] // self.batch_size) for idx in self.shard_idxs)

    def __iter__(self) -> Iterator[BatchRequest]:
        return _plan_pass(self.shards, self._batches(), self.num_workers)

    def _batches(self) -> Iterator[BatchRequest]:
        for start, stop in map(self.shards.span, self.shard_idxs):
            for first in range(start, stop, self.batch_size):
                yield BatchRequest(0, first, list(range(first, min(first + self.batch_size, stop))), 0)


def _plan_pass(shards: ShardSet, requests: Iterable[BatchRequest], num_workers: int) -> Iterator[BatchRequest]:
    """Yield the requests of a single pass, and plan its shards."""
    if not shards.prefetch_shards:
        yield from requests
        return
    requests, planned = tee(requests)
    batches = (PlannedBatch((0, request.start), np.array(request.numbers)) for request in planned)
    ahead = ReadAhead(shards, batches, num_workers, PREFETCH_FACTOR)
    try:
        for request in requests:
            ahead.advance()
            yield request
    finally:  # also where the caller reads no further
        ahead.stop()


def _identity_collate(loaded: LoadedBatch | BatchMessage) -> LoadedBatch | BatchMessage:
    return loaded


def _batch_timeout(shards: ShardSet, num_workers: int) -> float:
    """Return the seconds after which a worker without a result is given up; 0, never, without workers or a store."""
    return 2 * shards.patience + DECODE_TIMEOUT if num_workers and shards.patience else 0.0
