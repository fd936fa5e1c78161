"""Which rows of each global batch a rank reads, in which order; the shards they lie in are planned ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from torch.utils.data import Sampler

from mim_lightning.data.loading.batch_memory import SharedBatchBuffers
from mim_lightning.data.loading.read_ahead import PlannedBatch, ReadAhead
from mim_lightning.data.sampling.order import BatchOrder
from mim_lightning.data.shards.shard_set import ShardSet

PREFETCH_FACTOR = 2  # batches that each worker prefetches


@dataclass(frozen=True)
class BatchRequest:
    """One rank's part of a global batch: its samples, and its position in the run (for the seed of augmentation)."""

    epoch: int
    start: int  # samples of the epoch before this global batch
    numbers: list[int]
    num_padding: int  # numbers at the end that are repeats
    buffer_idx: int | None = None  # of the shared buffer for its images


class RankSampler(Sampler[BatchRequest]):
    """Split the global batches of an epoch between ranks in equal parts; repeats complete the last batch.

    Args:
        in_whole_batches: give each rank a run of whole batches, so that it reads the shards of its run alone; a rank
            with one batch fewer than others ends with a repeat of a row.
    """

    def __init__(
        self,
        shards: ShardSet,
        order: BatchOrder,
        rank: int,
        world_size: int,
        buffers: SharedBatchBuffers | None = None,
        num_workers: int = 0,
        in_whole_batches: bool = False,
    ) -> None:
        if order.global_batch_size % world_size and not in_whole_batches:
            raise ValueError(
                f"data.batch_size={order.global_batch_size} is the batch of all processes together; "
                f"it must be a multiple of their number, {world_size}"
            )
        self.shards, self.order, self.rank, self.world_size = shards, order, rank, world_size
        self.epoch, self.start, self.buffers, self.num_workers = 0, 0, buffers, num_workers
        self._ahead: ReadAhead | None = None
        self._ahead_order = order  # of `_ahead`
        self.in_whole_batches = in_whole_batches

    def __len__(self) -> int:
        num_batches = self.order.num_batches
        return -(-num_batches // self.world_size) if self.in_whole_batches else num_batches

    def __iter__(self) -> Iterator[BatchRequest]:
        start, epoch = self.start, self.epoch
        ahead = self._read_ahead(epoch, start)
        for part, num_padding in self._parts(self.order, epoch, start):
            buffer_idx = self.buffers.acquire() if self.buffers else None
            if ahead:
                ahead.advance()
            yield BatchRequest(epoch, start, part.tolist(), num_padding, buffer_idx)
            start += self.order.global_batch_size  # of a smaller batch too: positions count it as full
        if ahead and not self.order.shuffle:
            ahead.stop()

    @property
    def most_rows(self) -> int:
        """Rows of a pass that the rank with most of them has, without repeats."""
        num_rows, size, ranks = self.order.num_samples, self.order.global_batch_size, range(self.world_size)
        if self.in_whole_batches:
            runs = [self._run(self.order.num_batches, rank) for rank in ranks]
            return max(min(run.stop * size, num_rows) - run.start * size for run in runs)
        num_full, rest = divmod(num_rows, size)
        return num_full * (size // self.world_size) + -(-rest // self.world_size)

    def stop(self) -> None:
        """Plan no shards any more, until the next pass."""
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None

    def _read_ahead(self, epoch: int, start: int) -> ReadAhead | None:
        """Return what follows the order from a position on: the one of the last epoch if it has come there."""
        if not self.shards.prefetch_shards:
            return None
        is_former = self._ahead_order is not self.order  # what it read ahead is of another order
        if self._ahead is None or is_former or self._ahead.position != (epoch, start):
            if self._ahead is not None:
                self._ahead.stop()
            self._ahead_order, planned = self.order, self._plan(self.order, epoch, start)
            self._ahead = ReadAhead(self.shards, planned, self.num_workers, PREFETCH_FACTOR)
        return self._ahead

    def _plan(self, order: BatchOrder, epoch: int, start: int) -> Iterator[PlannedBatch]:
        """Yield this rank's batches from a position on, in training without an end."""
        while True:
            for part, _ in self._parts(order, epoch, start):
                yield PlannedBatch((epoch, start), part)
                start += order.global_batch_size
            if not order.shuffle or not order.num_samples:
                return
            epoch, start = epoch + 1, 0

    def _parts(self, order: BatchOrder, epoch: int, start: int) -> Iterator[tuple[np.ndarray, int]]:
        """Yield this rank's rows of each batch of an epoch, and how many at their end are repeats."""
        if self.in_whole_batches:
            yield from self._whole_batches(order, epoch)
            return
        for batch in order.batches(epoch, start):
            num_rows = -(-len(batch) // self.world_size)
            part = batch[self.rank * num_rows : (self.rank + 1) * num_rows]
            num_padding = num_rows - len(part)
            yield np.concatenate([part, np.resize(batch, num_padding)]), num_padding

    def _whole_batches(self, order: BatchOrder, epoch: int) -> Iterator[tuple[np.ndarray, int]]:
        run, size = self._run(order.num_batches, self.rank), order.global_batch_size
        for batch in islice(order.batches(epoch, run.start * size), len(run)):
            yield batch, 0
        if len(run) < len(self):  # by one
            last = next(order.batches(epoch, max(run.start, run.stop - 1) * size))
            yield last[-1:], 1  # of a shard that is at hand

    def _run(self, num_batches: int, rank: int) -> range:
        """Return which of the whole batches a rank has."""
        return range(num_batches * rank // self.world_size, num_batches * (rank + 1) // self.world_size)
