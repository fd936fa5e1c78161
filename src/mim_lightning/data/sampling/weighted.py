"""The weighted order: rows occur in proportion to their weights, drawn by systematic sampling.

How many rows each shard gives is computed from the sums of its weights, one number per shard; which rows, when its
window is reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mim_lightning.data.sampling.order import (
    WINDOW_SHARDS,
    EpochSettings,
    SetColumns,
    StateKey,
    StreamedOrder,
    read_column,
    release_pages,
    stream_state,
    validate_streams,
)
from mim_lightning.data.sampling.shuffled import interleave, split_into_streams

ROWS_AT_ONCE = 4_000_000  # whose weights are summed together


@dataclass(frozen=True, eq=False)
class WeightedOrder:
    """Rows drawn with replacement in proportion to their weights; an epoch is `num_samples` draws.

    Systematic sampling with unequal probabilities (Madow 1949): rows are laid on a line of length `num_samples`, each
    as long as its expected number of draws (weight / sum of weights x num_samples), and drawn once for every
    systematic point on it; points are one apart, from a random offset. The offset, the order of shards and the order
    of rows in a shard are random each epoch. A row with 2.3 expected draws occurs 2 or 3 times, and with equal weights
    and as many draws as rows every row occurs once. The points are counted over sums of shards first: memory is one
    number per shard.

    Streams and windows are those of ShuffledOrder, with the rows drawn from a shard instead of its rows.
    """

    shard_sizes: tuple[int, ...]
    global_batch_size: int
    weights: np.ndarray = field(repr=False)  # (rows of the set,), not negative
    num_samples: int
    seed: int = 0
    num_streams: int = 1
    window: int = WINDOW_SHARDS

    def __post_init__(self) -> None:
        validate_streams(self)
        if not self._shard_weights.any():
            raise ValueError("column 'weight': no row has a weight above 0")

    @property
    def num_batches(self) -> int:
        return -(-self.num_samples // self.global_batch_size)

    @property
    def shuffle(self) -> bool:
        return True

    def state_key(self) -> StateKey:
        return {
            "order": "weighted",
            **stream_state(self, self.num_samples),
            "sum_of_weights": float(self._shard_weights.sum()),
        }

    def passes(self) -> dict[str, StreamedOrder]:
        return {"": self}

    @property
    def rows_by_shard(self) -> np.ndarray:
        return self.num_samples * self._shard_weights / self._shard_weights.sum()

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch])
        shards = rng.permutation(len(self.shard_sizes))
        offset = rng.random()
        edges = np.append(0.0, np.cumsum(self._shard_weights[shards]))
        edges *= self.num_samples / edges[-1]
        edges[-1] = self.num_samples  # despite rounding
        num_drawn = np.diff(_systematic_points(edges, offset))

        def rows_in_window(positions: range, stream_idx: int, window_idx: int) -> np.ndarray:
            rng = np.random.default_rng([self.seed, epoch, 1 + stream_idx, window_idx])
            drawn = [self._draw(shards[i], edges[i : i + 2], offset, rng) for i in positions]
            release_pages(self.weights)
            return rng.permutation(np.concatenate(drawn))

        streams = split_into_streams(num_drawn, self.num_streams, self.window, rows_in_window)
        return interleave(streams, self.global_batch_size, start)

    def _draw(self, shard_idx: int, edges: np.ndarray, offset: float, rng: np.random.Generator) -> np.ndarray:
        """Return the rows of a shard, whose part of the line is `edges`, once for each systematic point on them."""
        if edges[0] == edges[1]:
            return np.empty(0, dtype=np.int64)
        first = self._starts[shard_idx]
        # in stored order, neighbors would never be drawn together
        rows = first + rng.permutation(self.shard_sizes[shard_idx])
        sums = np.cumsum(np.asarray(self.weights[rows], dtype=np.float64))
        row_edges = np.append(edges[0], edges[0] + np.diff(edges) * (sums / sums[-1]))
        # the last edge is the shard's own: exactly `num_drawn` rows are drawn
        row_edges = np.append(np.minimum(row_edges[:-1], edges[1]), edges[1])
        return np.repeat(rows, np.diff(_systematic_points(row_edges, offset)))

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum(self.shard_sizes) - self.shard_sizes

    @cached_property
    def _shard_weights(self) -> np.ndarray:
        """The sum of the weights of each shard.

        Raises:
            ValueError: a weight is negative or not finite.
        """
        sums = np.zeros(len(self.shard_sizes))
        num_shards = max(1, ROWS_AT_ONCE // max(self.shard_sizes))
        for shard_idx in range(0, len(sums), num_shards):
            starts = self._starts[shard_idx : shard_idx + num_shards]
            stop = starts[-1] + self.shard_sizes[shard_idx + len(starts) - 1]
            weights = np.asarray(self.weights[starts[0] : stop], dtype=np.float64)
            bad = np.flatnonzero(~((weights >= 0) & np.isfinite(weights)))
            if len(bad):
                raise ValueError(
                    f"column 'weight', sample {starts[0] + bad[0]}: {weights[bad[0]]} is not a weight; give finite "
                    "numbers, 0 or more"
                )
            sums[shard_idx : shard_idx + len(starts)] = np.add.reduceat(weights, starts - starts[0])
            release_pages(self.weights)
        return sums


@dataclass(frozen=True)
class WeightedSettings:
    """data/sampling=weighted: `data.rows_per_epoch` rows, drawn in proportion to the manifest's column `weight`."""

    @property
    def group_size(self) -> int:
        return 1

    def for_shards(self, shards: SetColumns, epoch: EpochSettings) -> WeightedOrder:
        num_draws = len(shards) if epoch.num_rows is None else epoch.num_rows
        return WeightedOrder(
            tuple(shards.sizes),
            epoch.global_batch_size,
            read_column(shards, "weights"),
            num_draws,
            epoch.seed,
            epoch.num_streams,
            epoch.window_for(num_draws, len(shards.sizes)),
        )


def _systematic_points(edges: np.ndarray, offset: float) -> np.ndarray:
    """Return how many points, one apart from an offset on, are before each edge of the line."""
    return np.floor(edges + offset).astype(np.int64)
