"""The grouped order: every sample once an epoch, k samples of a product together, part of a batch of one category.

The rows of an epoch, shard after shard in random order, are split between streams; a window is some batches' parts of
a stream, and `group_packing` arranges one window at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from mim_lightning.data.sampling.endless import in_epochs
from mim_lightning.data.sampling.group_packing import arrange
from mim_lightning.data.sampling.order import (
    WINDOW_SHARDS,
    BatchOrder,
    EpochSettings,
    SetColumns,
    StateKey,
    StreamedOrder,
    read_column,
    release_pages,
    stream_state,
    validate_streams,
)
from mim_lightning.types import NO_KEY

SPANS_AT_ONCE = 32  # of a memory-mapped column
GROUPED_SHARDS = 512  # of all streams together; a million rows at 2000 per shard


@dataclass(frozen=True, eq=False)
class GroupedOrder:
    """Batches of P products with k rows each.

    Every row occurs once an epoch, batches are full except the last, and no group of k rows is split. Only rows of one
    window can share a batch. A product with n rows in a window gives n // k groups, in different batches as long as
    there are enough of them; its leftover rows stay together as far as possible, wherever they fit.

    Args:
        product_keys, category_keys: (num_samples,) hashed id of each row, `NO_KEY` where there is none.
        samples_per_product: k. 1 keeps rows of a product apart instead.
        same_category_fraction: fraction of a batch (of its part from each stream) that comes from one category, 0 to 1.
        window: shards of a stream that are arranged together.
    """

    shard_sizes: tuple[int, ...]
    global_batch_size: int
    product_keys: np.ndarray = field(repr=False)
    samples_per_product: int = 2
    category_keys: np.ndarray | None = field(default=None, repr=False)
    same_category_fraction: float = 0.0
    seed: int = 0
    num_streams: int = 1
    window: int = GROUPED_SHARDS

    def __post_init__(self) -> None:
        validate_streams(self)
        if self.global_batch_size % self.samples_per_product or self.num_streams > self._num_groups:
            raise ValueError(
                f"data.batch_size={self.global_batch_size}: must be a multiple of data.sampling.samples_per_product="
                f"{self.samples_per_product}, and at least data.num_interleaved={self.num_streams} times it"
            )
        if self.same_category_fraction:
            self._validate_categories()

    @property
    def num_samples(self) -> int:
        return len(self.product_keys)

    @property
    def num_batches(self) -> int:
        return -(-self.num_samples // self.global_batch_size)

    @property
    def shuffle(self) -> bool:
        return True

    def state_key(self) -> StateKey:
        return {
            "order": "grouped",
            **stream_state(self),
            "order.rows_per_product": self.samples_per_product,
            "order.same_category": self.same_category_fraction,
            "num_samples": self.num_samples,
        }

    def passes(self) -> dict[str, StreamedOrder]:
        return {"": self}

    @property
    def rows_by_shard(self) -> np.ndarray:
        return np.array(self.shard_sizes)

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        sizes = np.array(self.shard_sizes)
        layout = EpochLayout(sizes, np.random.default_rng([self.seed, epoch]).permutation(len(sizes)))
        first_batch = -(-start // self.global_batch_size)
        streams = [self._parts(layout, epoch, stream_idx, first_batch) for stream_idx in range(self.num_streams)]
        for parts in zip(*streams, strict=True):
            yield np.concatenate(parts)

    def _parts(self, layout: EpochLayout, epoch: int, stream_idx: int, first_batch: int) -> Iterator[np.ndarray]:
        """Yield a stream's part of each batch, from one batch on."""
        size, tail = self._part_sizes[stream_idx]
        position = sum(self._num_full * size + tail for size, tail in self._part_sizes[:stream_idx])
        for window_idx, (first, stop) in enumerate(self._windows(size)):
            sizes = [size] * (min(stop, self._num_full) - first) + [tail] * (stop - max(first, self._num_full))
            if stop > first_batch:
                rng = np.random.default_rng([self.seed, epoch, 1 + stream_idx, window_idx])
                rows = self._arrange(layout.spans(position, position + sum(sizes)), sizes, size, rng)
                yield from np.split(rows, list(accumulate(sizes[:-1])))[max(0, first_batch - first) :]
            position += sum(sizes)

    def _arrange(
        self, spans: list[tuple[int, int]], sizes: list[int], full_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        k = self.samples_per_product
        if not any(sizes):  # a stream beyond the end of a small set
            return np.empty(0, dtype=np.int64)
        numbers = np.concatenate([np.arange(*span) for span in spans])
        products = _read(self.product_keys, spans)
        unknown = np.full(len(numbers), NO_KEY)
        categories = unknown if self.category_keys is None else _read(self.category_keys, spans)
        num_same_category = round(self.same_category_fraction * (full_size // k))
        num_full_parts = sum(size == full_size for size in sizes)
        return numbers[arrange(products, categories, num_full_parts, np.array(sizes) // k, num_same_category, k, rng)]

    @property
    def _num_groups(self) -> int:
        """Groups of k rows in a batch."""
        return self.global_batch_size // self.samples_per_product

    @property
    def _num_full(self) -> int:
        """Full batches of an epoch."""
        return self.num_samples // self.global_batch_size

    @property
    def _part_sizes(self) -> list[tuple[int, int]]:
        """Rows that each stream gives to a full batch, and to the smaller one at the end."""
        num_left, k = self.num_samples % self.global_batch_size, self.samples_per_product
        full, tail = (self._split(num_groups) for num_groups in (self._num_groups, num_left // k))
        sizes = [(k * in_full, k * in_tail) for in_full, in_tail in zip(full, tail, strict=True)]
        return [*sizes[:-1], (sizes[-1][0], sizes[-1][1] + num_left % k)]

    def _split(self, num_groups: int) -> list[int]:
        """Return how many groups each stream gives."""
        equal, remainder = divmod(num_groups, self.num_streams)
        return [equal + (stream_idx < remainder) for stream_idx in range(self.num_streams)]

    def _windows(self, part_size: int) -> list[tuple[int, int]]:
        """Return the windows of a stream as ranges of batches, (first, stop)."""
        rows = self.window * self.num_samples / len(self.shard_sizes)
        num_windows = max(1, -(-self._num_full // max(1, round(rows / part_size))))
        edges = [window_idx * self._num_full // num_windows for window_idx in range(num_windows)]
        return list(zip(edges, [*edges[1:], self.num_batches], strict=True))

    def _validate_categories(self) -> None:
        assert self.category_keys is not None, "same_category_fraction needs category_keys"
        num_groups = self._num_groups // self.num_streams
        if not (0 < self.same_category_fraction <= 1 and round(self.same_category_fraction * num_groups) >= 2):
            raise ValueError(
                f"data.sampling.same_category_fraction={self.same_category_fraction}: give a fraction up to 1 that is "
                f"at least 2 of the {num_groups} products of a batch (of its part from each stream)"
            )
        starts = range(0, self.num_samples, 1_000_000)
        if all((self.category_keys[start : start + 1_000_000] == NO_KEY).all() for start in starts):
            raise ValueError(
                f"data.sampling.same_category_fraction={self.same_category_fraction}: no row of the set has a "
                "category; name the column in data.source.columns.products and prepare again, or give 0"
            )


@dataclass(frozen=True)
class GroupedSettings:
    """data/sampling=grouped: k rows of a product together, and a fraction of each batch of one category."""

    samples_per_product: int = 2
    same_category_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.samples_per_product < 1:
            raise ValueError(f"data.sampling.samples_per_product={self.samples_per_product}: must be at least 1")
        if not 0 <= self.same_category_fraction <= 1:
            raise ValueError(
                f"data.sampling.same_category_fraction={self.same_category_fraction}: give a fraction, 0 to 1"
            )

    @property
    def group_size(self) -> int:
        return self.samples_per_product

    def for_shards(self, shards: SetColumns, epoch: EpochSettings) -> BatchOrder:
        least = max(WINDOW_SHARDS, GROUPED_SHARDS // epoch.num_streams)
        passes = GroupedOrder(
            tuple(shards.sizes),
            epoch.global_batch_size,
            read_column(shards, "product_keys"),
            self.samples_per_product,
            read_column(shards, "category_keys") if self.same_category_fraction else None,
            self.same_category_fraction,
            epoch.seed,
            epoch.num_streams,
            epoch.window_for(len(shards), len(shards.sizes), least),
        )
        return in_epochs(passes, epoch.num_rows)


def _read(column: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
    values = []
    for idx, (start, stop) in enumerate(spans):
        values.append(np.array(column[start:stop]))
        if idx % SPANS_AT_ONCE == 0:  # the system maps far more than is read
            release_pages(column)
    release_pages(column)
    return np.concatenate(values)


class EpochLayout:
    """The rows of a set laid end to end, shard after shard in the order of an epoch."""

    def __init__(self, sizes: np.ndarray, shards: np.ndarray) -> None:
        self._first_numbers = (np.cumsum(sizes) - sizes)[shards]
        self._stops = np.cumsum(sizes[shards])
        self._starts = self._stops - sizes[shards]

    def spans(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Return the rows at positions `first` to `stop` as ranges of sample numbers, one per shard."""
        spans = []
        first_shard, last_shard = np.searchsorted(self._stops, [first, stop - 1], side="right")
        for position in range(first_shard, last_shard + 1):
            shift = int(self._first_numbers[position] - self._starts[position])
            begin, end = max(first, int(self._starts[position])), min(stop, int(self._stops[position]))
            spans.append((begin + shift, end + shift))
        return spans
