"""What a loader will read next: follows the order ahead of the batches, so that shards at an address are downloaded in
time and stay in the cache until they are finished."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mim_lightning.data.shards.files import ShardPlan
from mim_lightning.data.shards.shard_set import ShardSet


class PlannedBatch(NamedTuple):
    position: tuple[int, int]  # epoch, and samples of it before this batch
    numbers: np.ndarray  # (B,) sample numbers


class ReadAhead:
    """Plans the shards of a set for one reader, a batch at a time.

    Args:
        shards: their `prefetch_shards` is how many are downloaded before a batch needs them; where their `cache_room`
            does not hold so many, batches are read ahead until it is full, and always those of the next shard.
        batches: from the next one on.
        num_workers: processes that read the batches; 0: this one.
        prefetch_factor: batches that each of them may be reading, or has not begun, the one requested last included.
    """

    def __init__(
        self, shards: ShardSet, batches: Iterator[PlannedBatch], num_workers: int = 0, prefetch_factor: int = 1
    ) -> None:
        self.shards, self.batches, self.has_workers = shards, batches, num_workers > 0
        self.num_requested = max(1, num_workers * prefetch_factor)  # batches that may still be read
        self.reader = uuid.uuid4().hex[:12]
        self._last_needed: dict[int, int] = {}  # by which batch, of each shard that is needed, in order of first need
        self._new: list[int] = []  # of these, since the last plan
        self._first_needed: deque[int] = deque()  # by which batch, of each shard that no batch has reached yet
        self._positions: deque[tuple[int, int]] = deque()  # of the batches read ahead
        self._needed_bytes = self._largest = 0  # of all shards that are needed, and of one
        self._num_reached, self._num_read = 0, 0  # batches
        # a pass over the set, whatever the length of an epoch, begins with the first shard that is needed again
        self._pass_idx, self._pass_of = 1, np.zeros(len(shards.sizes), dtype=np.int64)  # of each shard's last need
        self._pass_starts: deque[int] = deque([0])  # batches
        self._is_stopped = False

    @property
    def position(self) -> tuple[int, int] | None:
        """Position of the next batch of `advance`; None at the end."""
        self._read_to(self._num_reached + 1)
        return self._positions[0] if self._positions else None

    def advance(self) -> None:
        """Advance to the next batch."""
        self._num_reached += 1
        self._read_to(self._num_reached)
        while self._first_needed and self._first_needed[0] < self._num_reached:
            self._first_needed.popleft()
        epoch, start = self._positions[0]
        room = self.shards.cache_room
        while self._is_ahead_short(room) and self._positions[-1] < (epoch + 1, start):
            if not self._read_batch():  # a set of fewer shards is read once through, not without an end
                break
        new, self._new = tuple(self._new), []
        oldest = self._num_reached - self.num_requested
        finished = tuple(idx for idx, last in self._last_needed.items() if last < oldest)
        for idx in finished:
            del self._last_needed[idx]
            self._needed_bytes -= self.shards.shard_bytes(idx)
        self._positions.popleft()
        is_new_pass = False
        while self._pass_starts and self._pass_starts[0] < self._num_reached:
            self._pass_starts.popleft()
            is_new_pass = True
        if new or finished or is_new_pass:
            needed = tuple(self._last_needed)
            self.shards.plan(ShardPlan(self.reader, new, needed, finished, is_new_pass, self.has_workers))

    def stop(self) -> None:
        """Drop the plan."""
        if not self._is_stopped:
            self._is_stopped = True
            self.shards.stop(self.reader)

    def _is_ahead_short(self, room: int | None) -> bool:
        """Return whether another shard is to be downloaded ahead, and fits into the cache beside those needed."""
        num_ahead = len(self._first_needed)
        has_room = room is None or self._needed_bytes + self._largest <= room
        return num_ahead < self.shards.prefetch_shards and (has_room or num_ahead == 0)

    def _read_to(self, num_batches: int) -> None:
        while self._num_read < num_batches and self._read_batch():
            pass

    def _read_batch(self) -> bool:
        """Read one batch of the order; return whether there was one."""
        batch = next(self.batches, None)
        if batch is None:
            return False
        for idx in np.unique(self.shards.shards_of(batch.numbers)).tolist():
            if idx not in self._last_needed:
                self._first_needed.append(self._num_read)
                self._new.append(idx)
                num_bytes = self.shards.shard_bytes(idx)
                self._needed_bytes, self._largest = self._needed_bytes + num_bytes, max(self._largest, num_bytes)
                if self._pass_of[idx] == self._pass_idx:
                    self._pass_idx += 1
                    self._pass_starts.append(self._num_read)
                self._pass_of[idx] = self._pass_idx
            self._last_needed[idx] = self._num_read
        self._positions.append(batch.position)
        self._num_read += 1
        return True
