"""Orders: which rows meet in which global batch, as a pure function of the set, its settings and the epoch.

Shard sizes (and columns of a set) come in, global batches of sample numbers go out, from any position on; `stream`
deals them to ranks and knows an order by the names of `Order` alone. This file has the plain one, every row once in an
order that mixes shards; `grouped`, `weighted` and `mixed_order` have the others.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from mim_lightning.data.sampling.interleave import Lane, cut_lanes, deal


class SetColumns(Protocol):
    """What an order sees of a ShardSet."""

    sizes: list[int]
    folder: Any

    def __len__(self) -> int: ...

    def column(self, name: str) -> np.ndarray: ...


class Order(Protocol):
    """The order of a stream: neither processes nor workers change it."""

    @property
    def num_samples(self) -> int:
        """Rows that an epoch gives."""
        ...

    @property
    def num_batches(self) -> int: ...

    @property
    def global_batch_size(self) -> int: ...

    @property
    def shuffle(self) -> bool:
        """False: a pass in stored order, which always begins at the beginning."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """Yield the global batches of an epoch as sample numbers, after the first `start` samples.

        `start` is a multiple of the global batch size, or the epoch's end. The last batch may be smaller.
        """
        ...

    def fixed(self) -> dict[str, int | float | str]:
        """Return what must be equal for a saved position to mean the same sample, named as below `data.`."""
        ...


@dataclass(frozen=True)
class EpochSettings:
    """What every order of a run is told; see conf/data/base.yaml for what the names mean there."""

    global_batch_size: int
    seed: int = 0
    num_lanes: int = 1
    window: int | None = None  # shards; None: what the order takes
    num_rows: int | None = None  # of an epoch; None: what the order takes

    def __post_init__(self) -> None:
        if self.num_rows is not None and self.num_rows < 1:
            raise ValueError(f"data.rows_per_epoch={self.num_rows}: must be at least 1")


class OrderSettings(Protocol):
    """An option of conf/data/order."""

    @property
    def num_together(self) -> int:
        """So many neighbours in a batch belong together; the batch size is a multiple of it."""
        ...

    def over(self, shards: SetColumns, epoch: EpochSettings) -> Order:
        """Return the order over a set.

        Raises:
            ValueError: a setting does not suit the set, or the set lacks a column.
        """
        ...


@dataclass(frozen=True)
class StreamPlan:
    """Every row once an epoch: shards permuted, dealt to lanes, and shuffled inside windows of a few shards.

    A global batch takes an equal part from every lane, so that a node which owns some lanes reads only their
    shards. `window` and `num_lanes` count shards and lanes.
    """

    shard_sizes: tuple[int, ...]
    global_batch_size: int
    seed: int = 0
    shuffle: bool = True
    num_lanes: int = 1
    window: int = 8

    def __post_init__(self) -> None:
        refuse_bad_lanes(self.shard_sizes, self.global_batch_size, self.num_lanes, self.window)

    @cached_property
    def num_samples(self) -> int:
        return sum(self.shard_sizes)

    @property
    def num_batches(self) -> int:
        return -(-self.num_samples // self.global_batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        return deal(self._lanes(epoch), self.global_batch_size, start)

    def fixed(self) -> dict[str, int | float | str]:
        return {
            "order": "stream",
            "batch_size": self.global_batch_size,
            "num_lanes": self.num_lanes,
            "window": self.window,
            "seed": self.seed,
            "num_samples": self.num_samples,
            "num_shards": len(self.shard_sizes),
        }

    def _lanes(self, epoch: int) -> list[Lane]:
        sizes = np.array(self.shard_sizes)
        starts, shards = np.cumsum(sizes) - sizes, np.arange(len(sizes))
        if self.shuffle:
            shards = np.random.default_rng([self.seed, epoch]).permutation(shards)

        def rows_of(places: range, lane_idx: int, window_idx: int) -> np.ndarray:
            rows = np.concatenate([np.arange(starts[s], starts[s] + sizes[s]) for s in shards[list(places)]])
            if not self.shuffle:
                return rows
            return np.random.default_rng([self.seed, epoch, lane_idx, window_idx]).permutation(rows)

        return cut_lanes(sizes[shards], self.num_lanes, self.window if self.shuffle else 1, rows_of)


@dataclass(frozen=True)
class StreamSettings:
    """data/order=stream: every row once, in an order that mixes shards."""

    @property
    def num_together(self) -> int:
        return 1

    def over(self, shards: SetColumns, epoch: EpochSettings) -> StreamPlan:
        refuse_num_rows(epoch, "stream")
        return StreamPlan(
            tuple(shards.sizes),
            epoch.global_batch_size,
            epoch.seed,
            num_lanes=epoch.num_lanes,
            window=StreamPlan.window if epoch.window is None else epoch.window,
        )


def refuse_bad_lanes(shard_sizes: tuple[int, ...], global_batch_size: int, num_lanes: int, window: int) -> None:
    if not 1 <= num_lanes <= len(shard_sizes):
        raise ValueError(f"data.num_lanes={num_lanes}: 1 to {len(shard_sizes)}, the number of shards")
    for key, value in (("batch_size", global_batch_size), ("window", window)):
        if value < 1:
            raise ValueError(f"data.{key}={value}: must be at least 1")


def refuse_num_rows(epoch: EpochSettings, name: str) -> None:
    if epoch.num_rows is not None:
        raise ValueError(
            f"data.rows_per_epoch={epoch.num_rows}: an epoch of data/order={name} is every row once; leave it null, "
            "or choose data/order=weighted or a data.mix"
        )


def column_of(shards: SetColumns, name: str) -> np.ndarray:
    """Return a column of a set, one value a row.

    Raises:
        ValueError: the set has none, or one of another length.
    """
    column = shards.column(name)
    if len(column) != len(shards):
        raise ValueError(f"{shards.folder}/{name}.npy: {len(column)} values for {len(shards)} rows; run prepare again")
    return column


def forget_pages(column: np.ndarray) -> None:
    """Let go of what was read of a memory-mapped column: all of it would count as memory of this process."""
    if isinstance(column.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        column.base.madvise(mmap.MADV_DONTNEED)
