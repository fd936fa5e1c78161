"""Shard sets to batches of one rank: a DataLoader whose whole position is two integers.

A ShardSet, a Collate and an order come in, `Batch`es go out; `lit.datamodule` builds the loaders. Workers only read
what they are told to, so their number changes nothing.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.loading.corrupt_samples import BadSamples, Loaded, SkipCount, load
from mim_lightning.data.loading.shared_memory import Sent, Slots, make_slots
from mim_lightning.data.sampling.order import STATE_KEYS, BatchOrder
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.types import Batch

BATCHES_AHEAD = 2  # that each worker is asked for before they are needed
SHARED_MEMORY, LEAST_FREE = Path("/dev/shm"), 2**20  # noqa: S108 - where the system keeps it; bytes
BEYOND_PATIENCE = 300.0  # seconds that reading and decoding a batch may take beside waiting for a store


@dataclass(frozen=True)
class BatchRef:
    """One rank's part of a global batch: which samples, and where in the run (for the augmentation's seed)."""

    epoch: int
    start: int  # samples of the epoch before this global batch
    numbers: list[int]
    num_padding: int  # the last so many numbers are repeats
    ahead: tuple[int, ...] = ()  # shards to fetch, for later batches need them
    slot: int | None = None  # where its pictures go


class ShardDataset(Dataset[Any]):
    """Read and collate one BatchRef; runs in the loader's workers, or where there are none."""

    def __init__(
        self, shards: ShardSet, collate: Collate, are_skipped: bool = False, slots: Slots | None = None
    ) -> None:
        self.shards, self.collate, self.are_skipped, self.slots = shards, collate, are_skipped, slots

    def __getitems__(self, ref: BatchRef) -> Loaded | Sent:
        self.shards.fetch_ahead(ref.ahead)
        position = ref.epoch, ref.start
        buffer = None if self.slots is None or ref.slot is None else self.slots.buffer(ref.slot)
        found = load(self.shards, self.collate, ref.numbers, ref.num_padding, position, self.are_skipped, buffer)
        return Sent(found, self.slots, ref.slot) if get_worker_info() else found


class ShardsAhead:
    """Which shards come next: of batches as they are read, those that a later batch is the first to need.

    Args:
        shards: of whose `prefetch_shards` so many are named before they are needed.
        parts: the same batches, of sample numbers.
    """

    def __init__(self, shards: ShardSet, parts: Iterator[np.ndarray]) -> None:
        self.shards, self.parts = shards, parts
        self._is_named = np.zeros(len(shards.sizes), dtype=bool)
        self._first_needed: deque[int] = deque()  # by which batch, of each shard that was named and is not reached yet
        self._num_reached, self._num_read = 0, 0  # batches

    def next(self) -> tuple[int, ...]:
        """Return the shards to fetch while the next batch is read."""
        self._num_reached += 1
        while self._first_needed and self._first_needed[0] < self._num_reached:
            self._first_needed.popleft()
        found: list[int] = []
        while len(self._first_needed) < self.shards.prefetch_shards:
            part = next(self.parts, None)
            if part is None:
                break
            new = [idx for idx in np.unique(self.shards.shards_of(part)).tolist() if not self._is_named[idx]]
            self._is_named[new] = True
            if self._num_read >= self._num_reached:  # else it is needed at once
                self._first_needed.extend([self._num_read] * len(new))
                found += new
            self._num_read += 1
        return tuple(found)


class RankSampler(Sampler[BatchRef]):
    """Deal the global batches of an epoch to one rank, in equal parts; the last batch is filled up by repeats."""

    def __init__(
        self, shards: ShardSet, order: BatchOrder, rank: int, world_size: int, slots: Slots | None = None
    ) -> None:
        if order.global_batch_size % world_size:
            raise ValueError(
                f"data.batch_size={order.global_batch_size} is the batch of all processes together; "
                f"it must be a multiple of their number, {world_size}"
            )
        self.shards, self.order, self.rank, self.world_size = shards, order, rank, world_size
        self.epoch, self.start, self.slots = 0, 0, slots

    def __len__(self) -> int:
        return self.order.num_batches

    def __iter__(self) -> Iterator[BatchRef]:
        start, epoch = self.start, self.epoch
        ahead = self._ahead(epoch, start) if self.shards.prefetch_shards else None
        for batch in self.order.batches(epoch, start):
            part, num_padding = self._part(batch)
            slot = self.slots.take() if self.slots else None
            yield BatchRef(epoch, start, part.tolist(), num_padding, ahead.next() if ahead else (), slot)
            start += len(batch)

    def _ahead(self, epoch: int, start: int) -> ShardsAhead:
        return ShardsAhead(self.shards, (self._part(batch)[0] for batch in self.order.batches(epoch, start)))

    def _part(self, batch: np.ndarray) -> tuple[np.ndarray, int]:
        """Return this rank's rows of a global batch, and how many of them, the last ones, are repeats."""
        share = -(-len(batch) // self.world_size)
        part = batch[self.rank * share : (self.rank + 1) * share]
        num_padding = share - len(part)
        return np.concatenate([part, np.resize(batch, num_padding)]), num_padding


class StreamLoader(DataLoader[Loaded]):
    """A DataLoader that knows its position and goes on from it.

    Every `iter` begins where the last one was left; at the epoch's end that is the next epoch. The position is
    that of the whole run, not of a rank, so a checkpoint made by rank 0 resumes every rank. A pass in stored
    order (evaluation) always begins at the beginning.
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
        bad: BadSamples | None = None,
    ) -> None:
        bad = bad or BadSamples()
        rows_of_rank = -(-order.global_batch_size // world_size)
        self.slots = make_slots(collate.specs, rows_of_rank, num_workers, BATCHES_AHEAD)
        self.ranks, self.order = RankSampler(shards, order, rank, world_size, self.slots), order
        self.epoch, self.consumed = 0, 0
        self.skipped = SkipCount(bad, str(shards.folder), order.num_samples)
        super().__init__(
            ShardDataset(shards, collate, bad.are_skipped, self.slots),
            batch_sampler=self.ranks,  # type: ignore[arg-type]  # torch's stub wants lists of indices
            collate_fn=_as_is,  # type: ignore[arg-type]  # ShardDataset has collated already
            num_workers=num_workers,
            prefetch_factor=BATCHES_AHEAD if num_workers else None,
            pin_memory=pin_memory,
            timeout=_seconds_for_a_batch(shards, num_workers),
            persistent_workers=num_workers > 0,
            worker_init_fn=one_thread,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if self.consumed >= self.order.num_samples:
            self.epoch, self.consumed = self.epoch + 1, 0
        if not self.order.shuffle:
            self.consumed = 0
        self.ranks.epoch, self.ranks.start = self.epoch, self.consumed
        self.skipped.restart()
        refuse_full_memory(self.num_workers)
        for batch, skips in super().__iter__():
            self.skipped.add(skips)
            self.consumed = min(self.consumed + self.order.global_batch_size, self.order.num_samples)
            yield batch
        if self.slots:
            self.slots.give_back()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "consumed": self.consumed, **self.order.state_key()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved position.

        Raises:
            ValueError: the position means another sample under today's settings.
        """
        for name, value in self.order.state_key().items():
            if state.get(name) != value:
                key = f"data.{STATE_KEYS.get(name, name)}"
                raise ValueError(f"the checkpoint was made with {key}={state.get(name)}, now it is {value}")
        self.epoch, self.consumed = state["epoch"], state["consumed"]


class ShardPass:
    """One pass over some shards of a set, in order; no batch holds rows of two shards.

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
        self._refs = _PassRefs(shards, list(shard_idxs), batch_size)
        self._loader = DataLoader(
            ShardDataset(shards, collate),
            batch_sampler=self._refs,  # type: ignore[arg-type]  # torch's stub wants lists of indices
            collate_fn=_as_is,  # type: ignore[arg-type]  # ShardDataset has collated already
            num_workers=num_workers,
            pin_memory=pin_memory,
            timeout=_seconds_for_a_batch(shards, num_workers),
            worker_init_fn=one_thread,
        )

    def __len__(self) -> int:
        return len(self._refs)

    def __iter__(self) -> Iterator[Batch]:
        refuse_full_memory(self._loader.num_workers)
        return (loaded.batch for loaded in self._loader)


@dataclass(frozen=True)
class _PassRefs:
    """The batches of some shards, in order; a catalogue has too many samples to list them."""

    shards: ShardSet
    shard_idxs: list[int]
    batch_size: int

    def __len__(self) -> int:
        return sum(-(-self.shards.sizes[idx] // self.batch_size) for idx in self.shard_idxs)

    def __iter__(self) -> Iterator[BatchRef]:
        ahead = ShardsAhead(self.shards, map(np.array, self._parts())) if self.shards.prefetch_shards else None
        for part in self._parts():
            yield BatchRef(0, part[0], list(part), 0, ahead.next() if ahead else ())

    def _parts(self) -> Iterator[range]:
        for start, stop in map(self.shards.span, self.shard_idxs):
            for first in range(start, stop, self.batch_size):
                yield range(first, min(first + self.batch_size, stop))


def refuse_full_memory(num_workers: int) -> None:
    """Say so before workers start where they could hand nothing over: the system's error names no place.

    Raises:
        OSError: naming the place, and the key that needs none.
    """
    if num_workers and SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free < LEAST_FREE:
        reason = f"{os.strerror(errno.ENOSPC)}, and loading processes need some; make room, or set data.num_workers=0"
        raise OSError(errno.ENOSPC, reason, str(SHARED_MEMORY))


def _as_is(found: Loaded | Sent) -> Loaded | Sent:
    return found


def _seconds_for_a_batch(shards: ShardSet, num_workers: int) -> float:
    """Return after how long a worker that hands over nothing is given up; 0: never, without workers or a store."""
    return 2 * shards.patience + BEYOND_PATIENCE if num_workers and shards.patience else 0.0


def one_thread(worker_id: int) -> None:
    torch.set_num_threads(1)
