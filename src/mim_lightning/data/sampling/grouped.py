"""The grouped order: every row once an epoch, k rows of a product together, look-alikes of one category in a batch.

Shard sizes and the columns `product_keys` and `category_keys` of a set come in, global batches go out (see
`order.Order`). The rows of an epoch, shard after shard in random order, are a line; each lane owns a stretch of it,
a window is so many batches' parts of a lane, and `grouping` arranges one window at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from mim_lightning.data.sampling.group_packing import arrange
from mim_lightning.data.sampling.interleave import ShardLine
from mim_lightning.data.sampling.order import (
    EpochSettings,
    SetColumns,
    column_of,
    forget_pages,
    refuse_bad_lanes,
    refuse_num_rows,
)
from mim_lightning.types import NO_KEY

SHARDS_AT_ONCE = 512  # of all lanes; a million rows of 2000 a shard


@dataclass(frozen=True, eq=False)
class GroupedOrder:
    """Batches of P products with k rows each.

    Exact: every row comes once an epoch, batches are full but for the last, and no group of k rows is cut. Inside a
    window: which rows can meet. A product with n rows in a window gives n // k groups, in different batches as long
    as there are as many; what is left of it lies together as far as possible, wherever there is room.

    Args:
        product_keys, category_keys: (num_samples,) `id_key` of each row, `NO_KEY` where there is none.
        rows_per_product: k. 1 keeps rows of a product apart instead.
        same_category: share of a batch (of its part from each lane) that comes from one category, 0 to 1.
        window: shards looked at together in each lane.
    """

    shard_sizes: tuple[int, ...]
    global_batch_size: int
    product_keys: np.ndarray = field(repr=False)
    rows_per_product: int = 2
    category_keys: np.ndarray | None = field(default=None, repr=False)
    same_category: float = 0.0
    seed: int = 0
    num_lanes: int = 1
    window: int = SHARDS_AT_ONCE

    def __post_init__(self) -> None:
        refuse_bad_lanes(self.shard_sizes, self.global_batch_size, self.num_lanes, self.window)
        if self.global_batch_size % self.rows_per_product or self.num_lanes > self._num_slots:
            raise ValueError(
                f"data.batch_size={self.global_batch_size}: must be a multiple of data.order.rows_per_product="
                f"{self.rows_per_product}, and at least data.num_lanes={self.num_lanes} times it"
            )
        if self.same_category:
            self._refuse_bad_categories()

    @property
    def num_samples(self) -> int:
        return len(self.product_keys)

    @property
    def num_batches(self) -> int:
        return -(-self.num_samples // self.global_batch_size)

    @property
    def shuffle(self) -> bool:
        return True

    def fixed(self) -> dict[str, int | float | str]:
        return {
            "order": "grouped",
            "batch_size": self.global_batch_size,
            "order.rows_per_product": self.rows_per_product,
            "order.same_category": self.same_category,
            "num_lanes": self.num_lanes,
            "window": self.window,
            "seed": self.seed,
            "num_samples": self.num_samples,
            "num_shards": len(self.shard_sizes),
        }

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        sizes = np.array(self.shard_sizes)
        line = ShardLine(sizes, np.random.default_rng([self.seed, epoch]).permutation(len(sizes)))
        first_batch = -(-start // self.global_batch_size)
        lanes = [self._parts(line, epoch, lane_idx, first_batch) for lane_idx in range(self.num_lanes)]
        for parts in zip(*lanes, strict=True):
            yield np.concatenate(parts)

    def _parts(self, line: ShardLine, epoch: int, lane_idx: int, first_batch: int) -> Iterator[np.ndarray]:
        """Yield a lane's part of each batch, from one batch on."""
        size, tail = self._part_sizes[lane_idx]
        place = sum(self._num_full * size + tail for size, tail in self._part_sizes[:lane_idx])
        for window_idx, (first, stop) in enumerate(self._windows(size)):
            sizes = [size] * (min(stop, self._num_full) - first) + [tail] * (stop - max(first, self._num_full))
            if stop > first_batch:
                rng = np.random.default_rng([self.seed, epoch, 1 + lane_idx, window_idx])
                rows = self._arrange(line.spans(place, place + sum(sizes)), sizes, size, rng)
                yield from np.split(rows, list(accumulate(sizes[:-1])))[max(0, first_batch - first) :]
            place += sum(sizes)

    def _arrange(
        self, spans: list[tuple[int, int]], sizes: list[int], full_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        k = self.rows_per_product
        if not any(sizes):  # a lane beyond the end of a small set
            return np.empty(0, dtype=np.int64)
        numbers = np.concatenate([np.arange(*span) for span in spans])
        products = _read(self.product_keys, spans)
        unknown = np.full(len(numbers), NO_KEY)
        categories = unknown if self.category_keys is None else _read(self.category_keys, spans)
        num_hard = round(self.same_category * (full_size // k))
        num_full_parts = sum(size == full_size for size in sizes)
        return numbers[arrange(products, categories, num_full_parts, np.array(sizes) // k, num_hard, k, rng)]

    @property
    def _num_slots(self) -> int:
        """Slots of k rows in a batch."""
        return self.global_batch_size // self.rows_per_product

    @property
    def _num_full(self) -> int:
        """Full batches of an epoch."""
        return self.num_samples // self.global_batch_size

    @property
    def _part_sizes(self) -> list[tuple[int, int]]:
        """Rows that each lane gives to a full batch, and to the smaller one at the end."""
        num_left, k = self.num_samples % self.global_batch_size, self.rows_per_product
        sizes = [
            (k * _deal(self._num_slots, self.num_lanes, lane_idx), k * _deal(num_left // k, self.num_lanes, lane_idx))
            for lane_idx in range(self.num_lanes)
        ]
        return [*sizes[:-1], (sizes[-1][0], sizes[-1][1] + num_left % k)]

    def _windows(self, part_size: int) -> list[tuple[int, int]]:
        """Return the windows of a lane as runs of batches, (first, stop)."""
        rows = self.window * self.num_samples / len(self.shard_sizes)
        num_windows = max(1, -(-self._num_full // max(1, round(rows / part_size))))
        edges = [window_idx * self._num_full // num_windows for window_idx in range(num_windows)]
        return list(zip(edges, [*edges[1:], self.num_batches], strict=True))

    def _refuse_bad_categories(self) -> None:
        assert self.category_keys is not None, "same_category needs category_keys"
        num_slots = self._num_slots // self.num_lanes
        if not (0 < self.same_category <= 1 and round(self.same_category * num_slots) >= 2):
            raise ValueError(
                f"data.order.same_category={self.same_category}: give a share up to 1 that is at least 2 of the "
                f"{num_slots} products of a batch (of its part from each lane)"
            )
        starts = range(0, self.num_samples, 1_000_000)
        if all((self.category_keys[start : start + 1_000_000] == NO_KEY).all() for start in starts):
            raise ValueError(
                f"data.order.same_category={self.same_category}: no row of the set has a category; "
                "name the column in data.source.columns.products and prepare again, or give 0"
            )


@dataclass(frozen=True)
class GroupedSettings:
    """data/order=grouped: k rows of a product together, and of one category in a share of each batch."""

    rows_per_product: int = 2
    same_category: float = 0.0

    def __post_init__(self) -> None:
        if self.rows_per_product < 1:
            raise ValueError(f"data.order.rows_per_product={self.rows_per_product}: must be at least 1")
        if not 0 <= self.same_category <= 1:
            raise ValueError(f"data.order.same_category={self.same_category}: give a share, 0 to 1")

    @property
    def num_together(self) -> int:
        return self.rows_per_product

    def over(self, shards: SetColumns, epoch: EpochSettings) -> GroupedOrder:
        refuse_num_rows(epoch, "grouped")
        return GroupedOrder(
            tuple(shards.sizes),
            epoch.global_batch_size,
            column_of(shards, "product_keys"),
            self.rows_per_product,
            column_of(shards, "category_keys") if self.same_category else None,
            self.same_category,
            epoch.seed,
            epoch.num_lanes,
            max(8, SHARDS_AT_ONCE // epoch.num_lanes) if epoch.window is None else epoch.window,
        )


def _read(column: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
    values = np.concatenate([column[start:stop] for start, stop in spans])
    forget_pages(column)
    return values


def _deal(count: int, num_lanes: int, lane_idx: int) -> int:
    return count // num_lanes + (lane_idx < count % num_lanes)
