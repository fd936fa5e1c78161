"""The interface of a batch order: which samples form which global batch, as a pure function of set, settings and epoch.

The default is `shuffled`; others are `grouped`, `weighted` and `mixture`, and `endless` gives the first two epochs of
another length than a pass. The config group `data.sampling` and `MatchDataModule.train_order` choose one. A loader
splits global batches between processes and workers; neither changes an order.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np


class SetColumns(Protocol):
    """What an order reads of a ShardSet."""

    sizes: list[int]
    folder: Any

    def __len__(self) -> int: ...

    def column(self, name: str) -> np.ndarray: ...


StateKey = dict[str, int | float | str | None]


class BatchOrder(Protocol):
    """The global batches of every epoch, from any position on."""

    @property
    def num_samples(self) -> int:
        """Samples in an epoch, as positions count them: every batch as full, except a smaller one at the end."""
        ...

    @property
    def num_batches(self) -> int: ...

    @property
    def global_batch_size(self) -> int: ...

    @property
    def shuffle(self) -> bool:
        """False: a pass in stored order, which always starts at the beginning."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """Yield the global batches of an epoch as sample numbers, after the first `start` samples.

        `start` is a multiple of the global batch size, or the end of the epoch. The last batch may be smaller.
        """
        ...

    def state_key(self) -> StateKey:
        """Return what must be equal for a saved position to mean the same sample; saved in checkpoints."""
        ...

    def passes(self) -> Mapping[str, StreamedOrder]:
        """Return the order of a pass over each set, by the set's name in a mixture, else ""."""
        ...


WINDOW_SHARDS, WINDOW_BATCHES = 8, 4  # the least of a default window
# of `state_key`, which checkpoints hold under their first names -> config keys below `data.`
STATE_KEYS = {
    "num_lanes": "num_interleaved",
    "order": "sampling",
    "order.rows_per_product": "sampling.samples_per_product",
    "order.num_negatives": "sampling.num_negatives",
    "order.same_category": "sampling.same_category_fraction",
    "window": "shuffle_window_shards",
}


@dataclass(frozen=True)
class EpochSettings:
    """Settings that every order of a run has; see conf/data/base.yaml."""

    global_batch_size: int
    seed: int = 0
    num_streams: int = 1
    window: int | None = None  # shards; None: the default of the order
    num_rows: int | None = None  # of an epoch; None: a pass over the set

    def __post_init__(self) -> None:
        if self.num_rows is not None and self.num_rows < 1:
            raise ValueError(f"data.rows_per_epoch={self.num_rows}: must be at least 1")

    def resume(self, state: Mapping[str, Any], prefix: str = "") -> EpochSettings:
        """Return the settings of a run that resumes: where the window is a default, the one that the run began with.

        Args:
            state: of the loader, from a checkpoint.
            prefix: of the keys there.
        """
        window = state.get(f"{prefix}window")
        return replace(self, window=window) if self.window is None and isinstance(window, int) else self

    def window_for(self, num_samples: int, num_shards: int, least: int = WINDOW_SHARDS) -> int:
        """Return the shards of a stream that are shuffled together: as set, or enough for a few global batches.

        In a window of about one batch, the rows of a shard come together epoch after epoch.

        Args:
            num_samples: of a pass over the shards.
            least: the smallest default.
        """
        if self.window is not None:
            return self.window
        rows_of_streams = max(1, num_samples) / num_shards * self.num_streams
        num_needed = math.ceil(WINDOW_BATCHES * self.global_batch_size / rows_of_streams)
        if num_needed <= least:
            return least
        num_shards = math.ceil(num_shards / self.num_streams)
        # of equal size: a small one at the end would hold less than a batch
        return max(least, math.ceil(num_shards / max(1, num_shards // num_needed)))


class StreamedOrder(BatchOrder, Protocol):
    """An order of one set that takes its batches from interleaved streams of shards."""

    @property
    def shard_sizes(self) -> tuple[int, ...]: ...

    @property
    def seed(self) -> int: ...

    @property
    def num_streams(self) -> int: ...

    @property
    def window(self) -> int:
        """Shards of a stream that are shuffled together."""
        ...

    @property
    def rows_by_shard(self) -> np.ndarray:
        """(shards,) the rows of each shard that a pass has, on average."""
        ...


def stream_state(order: StreamedOrder, num_rows: int | None = None) -> StateKey:
    """Return the entries of `state_key` that all these orders have.

    Args:
        num_rows: of an epoch, where it is no pass.
    """
    return {
        "batch_size": order.global_batch_size,
        "rows_per_epoch": num_rows,
        "num_lanes": order.num_streams,
        "window": order.window,
        "seed": order.seed,
        "num_shards": len(order.shard_sizes),
    }


def validate_streams(order: StreamedOrder) -> None:
    num_shards = len(order.shard_sizes)
    if not 1 <= order.num_streams <= num_shards:
        raise ValueError(f"data.num_interleaved={order.num_streams}: 1 to {num_shards}, the number of shards")
    for key, value in (("batch_size", order.global_batch_size), ("shuffle_window_shards", order.window)):
        if value < 1:
            raise ValueError(f"data.{key}={value}: must be at least 1")


class OrderSettings(Protocol):
    """A config option that chooses an order."""

    @property
    def group_size(self) -> int:
        """Number of neighbors in a batch that belong together; the batch size is a multiple of it."""
        ...

    def for_shards(self, shards: SetColumns, epoch: EpochSettings) -> BatchOrder:
        """Return the order of a set.

        Raises:
            ValueError: a setting does not suit the set, or the set lacks a column.
        """
        ...


def read_column(shards: SetColumns, name: str) -> np.ndarray:
    """Return a column of a set, one value per sample.

    Raises:
        ValueError: the set has no such column, or one of another length.
    """
    column = shards.column(name)
    if len(column) != len(shards):
        raise ValueError(f"{shards.folder}/{name}.npy: {len(column)} values for {len(shards)} rows; run prepare again")
    return column


def release_pages(column: np.ndarray) -> None:
    """Release the pages of a memory-mapped column: otherwise all of it counts as memory of this process."""
    if isinstance(column.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        column.base.madvise(mmap.MADV_DONTNEED)
