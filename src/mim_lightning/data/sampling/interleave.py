"""How global batches are dealt from lanes, and from any position on, without playing through what came before.

Sizes of shards in the order of an epoch come in, lanes go out: runs of neighbouring shards, each a sequence of
windows whose rows are made when first needed. `order` and `weighted` say what the rows of a window are, `grouped`
takes its windows from a ShardLine. Nothing kept here grows with the number of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

RowsOf = Callable[
    [range, int, int], np.ndarray
]  # (places of shards in the epoch's order, lane_idx, window_idx) -> rows


class Lane:
    """A sequence of windows; skipping costs nothing, the rows of a window are made when first needed."""

    def __init__(self, sizes: Sequence[int], rows_of: Callable[[int], np.ndarray]) -> None:
        self.sizes, self.rows_of = sizes, rows_of
        self.num_left = sum(sizes)
        self.window_idx, self.used = 0, 0
        self._rows: np.ndarray | None = None

    def skip(self, count: int) -> None:
        self.num_left -= count
        self.used += count
        while self.window_idx < len(self.sizes) and self.used >= self.sizes[self.window_idx]:
            self.used -= self.sizes[self.window_idx]
            self.window_idx += 1
            self._rows = None

    def take(self, count: int) -> np.ndarray:
        parts = [np.empty(0, dtype=np.int64)]
        while count:
            if self._rows is None:
                self._rows = self.rows_of(self.window_idx)
            part = self._rows[self.used : self.used + count]
            parts.append(part)
            count -= len(part)
            self.skip(len(part))
        return np.concatenate(parts)


def cut_lanes(sizes: np.ndarray, num_lanes: int, window: int, rows_of: RowsOf) -> list[Lane]:
    """Cut shards, given by their sizes in the order of the epoch, into lanes and these into windows of shards."""
    lanes = []
    for lane_idx, places in enumerate(np.array_split(np.arange(len(sizes)), num_lanes)):
        first, stop = int(places[0]), int(places[-1]) + 1

        def rows(window_idx: int, lane_idx: int = lane_idx, first: int = first, stop: int = stop) -> np.ndarray:
            start = first + window_idx * window
            return rows_of(range(start, min(start + window, stop)), lane_idx, window_idx)

        lanes.append(Lane(np.add.reduceat(sizes[first:stop], np.arange(0, stop - first, window)).tolist(), rows))
    return lanes


def deal(lanes: list[Lane], batch_size: int, start: int) -> Iterator[np.ndarray]:
    """Yield batches with an equal part from every lane, after the first `start` rows; the last may be smaller."""
    left = np.array([lane.num_left for lane in lanes])
    left = _skip_batches(left, batch_size, -(-start // batch_size))
    for lane, target in zip(lanes, left, strict=True):
        lane.skip(lane.num_left - int(target))
    while left.any():
        quotas = _quotas(left, batch_size)
        yield np.concatenate([lane.take(int(quota)) for lane, quota in zip(lanes, quotas, strict=True)])
        left -= quotas


def _quotas(left: np.ndarray, batch_size: int) -> np.ndarray:
    """Split one batch over the lanes with something left: equal parts, what one lacks comes from the fullest."""
    live = np.flatnonzero(left)
    share, rest = divmod(batch_size, len(live))
    quotas = np.zeros_like(left)
    quotas[live] = np.minimum(share + (np.arange(len(live)) < rest), left[live])
    lacking = min(batch_size, int(left.sum())) - int(quotas.sum())
    if lacking:
        for lane_idx in np.argsort(quotas - left, kind="stable"):
            extra = min(lacking, int(left[lane_idx] - quotas[lane_idx]))
            quotas[lane_idx] += extra
            lacking -= extra
    return quotas


def _skip_batches(left: np.ndarray, batch_size: int, num_batches: int) -> np.ndarray:
    """Return what is left of each lane after so many batches, in about as many steps as there are lanes."""
    left = left.copy()
    while num_batches and left.any():
        quotas = _quotas(left, batch_size)
        giving = quotas > 0
        # every batch is split like this one until a lane runs short
        repeats = min(num_batches, int((left[giving] // quotas[giving]).min()))
        left -= repeats * quotas
        num_batches -= repeats
    return left


class ShardLine:
    """The rows of a set laid end to end, shard after shard in the order of an epoch."""

    def __init__(self, sizes: np.ndarray, shards: np.ndarray) -> None:
        self._first_numbers = (np.cumsum(sizes) - sizes)[shards]
        self._stops = np.cumsum(sizes[shards])
        self._starts = self._stops - sizes[shards]

    def spans(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Return the rows at places `first` to `stop` of the line as runs of sample numbers, one a shard."""
        spans = []
        first_place, last_place = np.searchsorted(self._stops, [first, stop - 1], side="right")
        for place in range(first_place, last_place + 1):
            shift = int(self._first_numbers[place] - self._starts[place])
            begin, end = max(first, int(self._starts[place])), min(stop, int(self._stops[place]))
            spans.append((begin + shift, end + shift))
        return spans
