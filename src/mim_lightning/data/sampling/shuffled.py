"""The shuffled order: every sample once an epoch, from interleaved streams of shards with a shuffle window each.

Any position is reached without generating what comes before it, and memory does not grow with the number of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mim_lightning.data.sampling.endless import in_epochs
from mim_lightning.data.sampling.order import (
    WINDOW_SHARDS,
    BatchOrder,
    EpochSettings,
    SetColumns,
    StateKey,
    StreamedOrder,
    stream_state,
    validate_streams,
)

# (positions of shards in the order of the epoch, stream_idx, window_idx) -> sample numbers
RowsInWindow = Callable[[range, int, int], np.ndarray]


class ShardStream:
    """A sequence of windows; skipping is free, the rows of a window are generated when first needed."""

    def __init__(self, sizes: Sequence[int], rows_of: Callable[[int], np.ndarray]) -> None:
        self.sizes, self.rows_of = sizes, rows_of
        self.num_left = sum(sizes)
        self.window_idx, self.num_used = 0, 0
        self._rows: np.ndarray | None = None

    def skip(self, count: int) -> None:
        self.num_left -= count
        self.num_used += count
        while self.window_idx < len(self.sizes) and self.num_used >= self.sizes[self.window_idx]:
            self.num_used -= self.sizes[self.window_idx]
            self.window_idx += 1
            self._rows = None

    def take(self, count: int) -> np.ndarray:
        parts = [np.empty(0, dtype=np.int64)]
        while count:
            if self._rows is None:
                self._rows = self.rows_of(self.window_idx)
            part = self._rows[self.num_used : self.num_used + count]
            parts.append(part)
            count -= len(part)
            self.skip(len(part))
        return np.concatenate(parts)


def split_into_streams(
    sizes: np.ndarray, num_streams: int, window: int, rows_in_window: RowsInWindow
) -> list[ShardStream]:
    """Split shards, given by their sizes in the order of the epoch, into streams, and these into windows of shards."""
    streams = []
    for stream_idx, positions in enumerate(np.array_split(np.arange(len(sizes)), num_streams)):
        first, stop = int(positions[0]), int(positions[-1]) + 1

        def rows(window_idx: int, stream_idx: int = stream_idx, first: int = first, stop: int = stop) -> np.ndarray:
            start = first + window_idx * window
            return rows_in_window(range(start, min(start + window, stop)), stream_idx, window_idx)

        window_sizes = np.add.reduceat(sizes[first:stop], np.arange(0, stop - first, window))
        streams.append(ShardStream(window_sizes.tolist(), rows))
    return streams


def interleave(streams: list[ShardStream], batch_size: int, start: int) -> Iterator[np.ndarray]:
    """Yield batches with an equal part from each stream, after the first `start` rows; the last may be smaller."""
    num_left = np.array([stream.num_left for stream in streams])
    num_left = _skip_batches(num_left, batch_size, -(-start // batch_size))
    for stream, target in zip(streams, num_left, strict=True):
        stream.skip(stream.num_left - int(target))
    while num_left.any():
        quotas = _split_batch(num_left, batch_size)
        yield np.concatenate([stream.take(int(quota)) for stream, quota in zip(streams, quotas, strict=True)])
        num_left -= quotas


def _split_batch(num_left: np.ndarray, batch_size: int) -> np.ndarray:
    """Split one batch over the streams that are not empty: equal parts, and what one lacks comes from the fullest."""
    live = np.flatnonzero(num_left)
    equal, remainder = divmod(batch_size, len(live))
    quotas = np.zeros_like(num_left)
    quotas[live] = np.minimum(equal + (np.arange(len(live)) < remainder), num_left[live])
    num_lacking = min(batch_size, int(num_left.sum())) - int(quotas.sum())
    if num_lacking:
        for stream_idx in np.argsort(quotas - num_left, kind="stable"):
            extra = min(num_lacking, int(num_left[stream_idx] - quotas[stream_idx]))
            quotas[stream_idx] += extra
            num_lacking -= extra
    return quotas


def _skip_batches(num_left: np.ndarray, batch_size: int, num_batches: int) -> np.ndarray:
    """Return what is left of each stream after some batches, in about as many steps as there are streams."""
    num_left = num_left.copy()
    while num_batches and num_left.any():
        quotas = _split_batch(num_left, batch_size)
        is_used = quotas > 0
        # every batch is split like this one until a stream runs short
        repeats = min(num_batches, int((num_left[is_used] // quotas[is_used]).min()))
        num_left -= repeats * quotas
        num_batches -= repeats
    return num_left


@dataclass(frozen=True)
class ShuffledOrder:
    """Every sample once an epoch: shards are permuted, split into streams, and shuffled in windows of a few shards.

    A global batch takes an equal part from every stream, so that a node which owns some streams reads only their
    shards. `window` counts shards, `num_streams` streams.
    """

    shard_sizes: tuple[int, ...]
    global_batch_size: int
    seed: int = 0
    shuffle: bool = True
    num_streams: int = 1
    window: int = WINDOW_SHARDS

    def __post_init__(self) -> None:
        validate_streams(self)

    @cached_property
    def num_samples(self) -> int:
        return sum(self.shard_sizes)

    @property
    def num_batches(self) -> int:
        return -(-self.num_samples // self.global_batch_size)

    def state_key(self) -> StateKey:
        return {"order": "stream", **stream_state(self), "num_samples": self.num_samples}

    def passes(self) -> dict[str, StreamedOrder]:
        return {"": self}

    @property
    def rows_by_shard(self) -> np.ndarray:
        return np.array(self.shard_sizes)

    def arrange(self, epoch: int, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the rows of a window in the order in which batches take them."""
        return rng.permutation(rows)

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        sizes = np.array(self.shard_sizes)
        starts, shards = np.cumsum(sizes) - sizes, np.arange(len(sizes))
        if self.shuffle:
            shards = np.random.default_rng([self.seed, epoch]).permutation(shards)

        def rows_in_window(positions: range, stream_idx: int, window_idx: int) -> np.ndarray:
            rows = np.concatenate([np.arange(starts[s], starts[s] + sizes[s]) for s in shards[list(positions)]])
            if not self.shuffle:
                return rows
            return self.arrange(epoch, rows, np.random.default_rng([self.seed, epoch, stream_idx, window_idx]))

        window = self.window if self.shuffle else 1
        streams = split_into_streams(sizes[shards], self.num_streams, window, rows_in_window)
        return interleave(streams, self.global_batch_size, start)


def sequential_order(shards: SetColumns, global_batch_size: int) -> ShuffledOrder:
    """Return the order of one pass in stored order."""
    return ShuffledOrder(tuple(shards.sizes), global_batch_size, shuffle=False)


@dataclass(frozen=True)
class ShuffledSettings:
    """data/sampling=shuffled: every sample once a pass, in shuffled order."""

    @property
    def group_size(self) -> int:
        return 1

    def for_shards(self, shards: SetColumns, epoch: EpochSettings) -> BatchOrder:
        passes = ShuffledOrder(
            tuple(shards.sizes),
            epoch.global_batch_size,
            epoch.seed,
            num_streams=epoch.num_streams,
            window=epoch.window_for(len(shards), len(shards.sizes)),
        )
        return in_epochs(passes, epoch.num_rows)
