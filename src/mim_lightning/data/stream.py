"""Shard sets to batches of one rank: a DataLoader whose whole position is two integers.

A ShardSet and a Collate come in, `Batch`es go out; `lit.datamodule` builds the loaders. The order is
`order.epoch_batches`; workers only decode what they are told to, so their number changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mim_lightning.data.collate import Collate
from mim_lightning.data.order import StreamPlan, epoch_batches
from mim_lightning.data.shards import ShardSet
from mim_lightning.types import Batch


@dataclass(frozen=True)
class BatchRef:
    """One rank's part of a global batch: which samples, and where in the run (for the augmentation's seed)."""

    epoch: int
    start: int  # samples of the epoch before this global batch
    numbers: list[int]
    num_padding: int  # the last so many numbers are repeats


class ShardDataset(Dataset[Batch]):
    """Read and collate one BatchRef; runs in the loader's workers."""

    def __init__(self, shards: ShardSet, collate: Collate) -> None:
        self.shards, self.collate = shards, collate

    def __getitems__(self, ref: BatchRef) -> Batch:
        num_real = len(ref.numbers) - ref.num_padding
        samples = self.shards.read(ref.numbers[:num_real])
        samples += self.shards.read(ref.numbers[num_real:], is_padding=True)
        try:
            return self.collate(samples, position=(ref.epoch, ref.start))
        except ValueError as error:
            raise ValueError(f"{self.shards.folder}: {error}") from error


class RankSampler(Sampler[BatchRef]):
    """Deal the global batches of an epoch to one rank, in equal parts; the last batch is filled up by repeats."""

    def __init__(self, plan: StreamPlan, rank: int, world_size: int) -> None:
        if plan.global_batch_size % world_size:
            raise ValueError(
                f"data.batch_size={plan.global_batch_size} is the batch of all processes together; "
                f"it must be a multiple of their number, {world_size}"
            )
        self.plan, self.rank, self.world_size = plan, rank, world_size
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return self.plan.num_batches

    def __iter__(self) -> Iterator[BatchRef]:
        start = self.start
        for batch in epoch_batches(self.plan, self.epoch, start):
            yield self._part(batch, start)
            start += len(batch)

    def _part(self, batch: np.ndarray, start: int) -> BatchRef:
        share = -(-len(batch) // self.world_size)
        part = batch[self.rank * share : (self.rank + 1) * share]
        padding = np.resize(batch, share - len(part))
        return BatchRef(self.epoch, start, [*part.tolist(), *padding.tolist()], len(padding))


class StreamLoader(DataLoader[Batch]):
    """A DataLoader that knows its position and goes on from it.

    Every `iter` begins where the last one was left; at the epoch's end that is the next epoch. The position is
    that of the whole run, not of a rank, so a checkpoint made by rank 0 resumes every rank. A pass in stored
    order (evaluation) always begins at the beginning.
    """

    def __init__(
        self,
        shards: ShardSet,
        collate: Collate,
        plan: StreamPlan,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.ranks = RankSampler(plan, rank, world_size)
        self.plan = plan
        self.epoch, self.consumed = 0, 0
        super().__init__(
            ShardDataset(shards, collate),
            batch_sampler=self.ranks,  # type: ignore[arg-type]  # torch's stub wants lists of indices
            collate_fn=_as_is,  # type: ignore[arg-type]  # ShardDataset has collated already
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=_one_thread,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if self.consumed >= self.plan.num_samples:
            self.epoch, self.consumed = self.epoch + 1, 0
        if not self.plan.shuffle:
            self.consumed = 0
        self.ranks.epoch, self.ranks.start = self.epoch, self.consumed
        for batch in super().__iter__():
            self.consumed = min(self.consumed + self.plan.global_batch_size, self.plan.num_samples)
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "consumed": self.consumed, **self._fixed()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position.

        Raises:
            ValueError: the position means another sample under today's settings.
        """
        for name, value in self._fixed().items():
            if state.get(name) != value:
                raise ValueError(f"the checkpoint was made with data.{name}={state.get(name)}, now it is {value}")
        self.epoch, self.consumed = state["epoch"], state["consumed"]

    def _fixed(self) -> dict[str, int]:
        return {
            "batch_size": self.plan.global_batch_size,
            "num_lanes": self.plan.num_lanes,
            "window": self.plan.window,
            "seed": self.plan.seed,
            "num_samples": self.plan.num_samples,
            "num_shards": len(self.plan.shard_sizes),
        }


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
        spans = [shards.span(idx) for idx in shard_idxs]
        parts = [part for start, stop in spans for part in _parts(start, stop, batch_size)]
        self._refs = [BatchRef(0, part[0], part, 0) for part in parts]
        self._loader = DataLoader(
            ShardDataset(shards, collate),
            batch_sampler=self._refs,  # type: ignore[arg-type]  # torch's stub wants lists of indices
            collate_fn=_as_is,  # type: ignore[arg-type]  # ShardDataset has collated already
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=_one_thread,
        )

    def __len__(self) -> int:
        return len(self._refs)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)


def _parts(start: int, stop: int, size: int) -> list[list[int]]:
    return [list(range(first, min(first + size, stop))) for first in range(start, stop, size)]


def evaluation_plan(shards: ShardSet, global_batch_size: int) -> StreamPlan:
    """Return the plan of one pass in stored order."""
    return StreamPlan(tuple(shards.sizes), global_batch_size, shuffle=False)


def _as_is(batch: Batch) -> Batch:
    return batch


def _one_thread(worker_id: int) -> None:
    torch.set_num_threads(1)
