"""The order of an epoch as a pure function of (shard sizes, seed, epoch, lanes, window).

Shard sizes come in, global batches of sample numbers go out, from any position on; `stream` deals them to
ranks. Nothing kept here grows with the number of samples: shards are permuted, dealt to lanes, and shuffled
inside windows of a few shards; a global batch takes an equal part from every lane, so that a node which owns
some lanes reads only their shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class StreamPlan:
    """Everything the order depends on besides the epoch; `window` and `num_lanes` count shards and lanes."""

    shard_sizes: tuple[int, ...]
    global_batch_size: int
    seed: int = 0
    shuffle: bool = True
    num_lanes: int = 1
    window: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.num_lanes <= len(self.shard_sizes):
            raise ValueError(f"data.num_lanes={self.num_lanes}: 1 to {len(self.shard_sizes)}, the number of shards")
        if self.global_batch_size < 1 or self.window < 1:
            raise ValueError("batch size and data.window must be at least 1")

    @cached_property
    def num_samples(self) -> int:
        return sum(self.shard_sizes)

    @property
    def num_batches(self) -> int:
        return -(-self.num_samples // self.global_batch_size)


def epoch_batches(plan: StreamPlan, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
    """Yield the global batches of an epoch as sample numbers, after the first `start` samples.

    `start` is a multiple of the global batch size, or the epoch's end. The last batch may be smaller.
    """
    lanes = _lanes(plan, epoch)
    left = np.array([lane.num_left for lane in lanes])
    left = _skip_batches(left, plan.global_batch_size, -(-start // plan.global_batch_size))
    for lane, target in zip(lanes, left, strict=True):
        lane.skip(lane.num_left - int(target))
    while left.any():
        quotas = _quotas(left, plan.global_batch_size)
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


def _lanes(plan: StreamPlan, epoch: int) -> list[_Lane]:
    starts = np.concatenate([[0], np.cumsum(plan.shard_sizes)])
    shards = np.arange(len(plan.shard_sizes))
    if plan.shuffle:
        shards = np.random.default_rng([plan.seed, epoch]).permutation(shards)
    return [
        _Lane(
            [(int(starts[s]), int(starts[s + 1])) for s in part],
            window=plan.window if plan.shuffle else 1,
            seed=[plan.seed, epoch, lane_idx] if plan.shuffle else None,
        )
        for lane_idx, part in enumerate(np.array_split(shards, plan.num_lanes))
    ]


class _Lane:
    """A run of shards, read window by window; skipping costs nothing, a window is shuffled when first needed."""

    def __init__(self, spans: Sequence[tuple[int, int]], window: int, seed: list[int] | None) -> None:
        self.windows = [spans[i : i + window] for i in range(0, len(spans), window)]
        self.sizes = [sum(stop - start for start, stop in spans) for spans in self.windows]
        self.seed = seed
        self.num_left = sum(self.sizes)
        self.window_idx, self.used = 0, 0
        self._numbers: np.ndarray | None = None

    def skip(self, count: int) -> None:
        self.num_left -= count
        self.used += count
        while self.window_idx < len(self.sizes) and self.used >= self.sizes[self.window_idx]:
            self.used -= self.sizes[self.window_idx]
            self.window_idx += 1
            self._numbers = None

    def take(self, count: int) -> np.ndarray:
        parts = [np.empty(0, dtype=np.int64)]
        while count:
            part = self._window()[self.used : self.used + count]
            parts.append(part)
            count -= len(part)
            self.skip(len(part))
        return np.concatenate(parts)

    def _window(self) -> np.ndarray:
        if self._numbers is None:
            self._numbers = np.concatenate([np.arange(*span) for span in self.windows[self.window_idx]])
            if self.seed is not None:
                self._numbers = np.random.default_rng([*self.seed, self.window_idx]).permutation(self._numbers)
        return self._numbers
