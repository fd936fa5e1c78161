"""The interface of a batch order: which samples form which global batch, as a pure function of set, settings and epoch.

The orders are in `shuffled`, `grouped`, `weighted` and `mixture`; `data.sampling` and `MatchDataModule.train_order`
choose one. A loader splits global batches between processes and
workers; neither changes an order.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class SetColumns(Protocol):
    """What an order reads of a ShardSet."""

    sizes: list[int]
    folder: Any

    def __len__(self) -> int: ...

    def column(self, name: str) -> np.ndarray: ...


class BatchOrder(Protocol):
    """The global batches of every epoch, from any position on."""

    @property
    def num_samples(self) -> int:
        """Samples in an epoch."""
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

    def state_key(self) -> dict[str, int | float | str]:
        """Return what must be equal for a saved position to mean the same sample; saved in checkpoints."""
        ...


# of `state_key`, which checkpoints hold under their first names -> config keys below `data.`
STATE_KEYS = {
    "num_lanes": "num_interleaved",
    "order": "sampling",
    "order.rows_per_product": "sampling.samples_per_product",
    "order.same_category": "sampling.same_category_fraction",
    "rows_per_epoch": "samples_per_epoch",
    "window": "shuffle_window_shards",
}


@dataclass(frozen=True)
class EpochSettings:
    """Settings that every order of a run has; see conf/data/base.yaml."""

    global_batch_size: int
    seed: int = 0
    num_streams: int = 1
    window: int | None = None  # shards; None: the default of the order
    num_rows: int | None = None  # of an epoch; None: the default of the order

    def __post_init__(self) -> None:
        if self.num_rows is not None and self.num_rows < 1:
            raise ValueError(f"data.samples_per_epoch={self.num_rows}: must be at least 1")


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


def validate_streams(num_shards: int, global_batch_size: int, num_streams: int, window: int) -> None:
    if not 1 <= num_streams <= num_shards:
        raise ValueError(f"data.num_interleaved={num_streams}: 1 to {num_shards}, the number of shards")
    for key, value in (("batch_size", global_batch_size), ("shuffle_window_shards", window)):
        if value < 1:
            raise ValueError(f"data.{key}={value}: must be at least 1")


def validate_full_epoch(epoch: EpochSettings, name: str) -> None:
    """Raise ValueError if the length of an epoch is set for an order that always takes every sample once."""
    if epoch.num_rows is not None:
        raise ValueError(
            f"data.samples_per_epoch={epoch.num_rows}: an epoch of data/sampling={name} is every row once; leave it "
            "null, or choose data/sampling=weighted or a data.mixture"
        )


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
