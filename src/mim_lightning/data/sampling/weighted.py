"""The weighted order: rows come as often as their weight says, by chance that is spread as evenly as it can be.

Shard sizes and the column `weights` of a set come in, global batches go out (see `order.Order`). How many rows each
shard gives is decided from the sums of its weights, kept one a shard; which rows, when its window is reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mim_lightning.data.sampling.interleave import Lane, cut_lanes, deal
from mim_lightning.data.sampling.order import (
    EpochSettings,
    SetColumns,
    StreamPlan,
    column_of,
    forget_pages,
    refuse_bad_lanes,
)

ROWS_AT_ONCE = 4_000_000  # of weights summed


@dataclass(frozen=True, eq=False)
class WeightedOrder:
    """Rows drawn with replacement in proportion to their weights; an epoch is `num_samples` draws.

    Systematic sampling with unequal probabilities (Madow 1949): rows are laid on a line of length `num_samples`, each
    as long as the number of draws it is due (weight / sum of weights x num_samples), and drawn as often as a comb of
    teeth one apart meets it. The comb's place, the shards' order and the rows' order inside a shard are random each
    epoch. So a row due 2.3 draws comes 2 or 3 times, 2.3 on average, and with equal weights and as many draws
    as rows every row comes once. The comb runs over sums of shards first: memory is one number a shard.

    Lanes and windows are those of StreamPlan, with the rows drawn from a shard in the place of its rows.
    """

    shard_sizes: tuple[int, ...]
    global_batch_size: int
    weights: np.ndarray = field(repr=False)  # (rows of the set,), not negative
    num_samples: int
    seed: int = 0
    num_lanes: int = 1
    window: int = StreamPlan.window

    def __post_init__(self) -> None:
        refuse_bad_lanes(self.shard_sizes, self.global_batch_size, self.num_lanes, self.window)
        if not self._shard_weights.any():
            raise ValueError("column 'weight': no row has a weight above 0")

    @property
    def num_batches(self) -> int:
        return -(-self.num_samples // self.global_batch_size)

    @property
    def shuffle(self) -> bool:
        return True

    def fixed(self) -> dict[str, int | float | str]:
        return {
            "order": "weighted",
            "batch_size": self.global_batch_size,
            "rows_per_epoch": self.num_samples,
            "num_lanes": self.num_lanes,
            "window": self.window,
            "seed": self.seed,
            "num_shards": len(self.shard_sizes),
            "sum_of_weights": float(self._shard_weights.sum()),
        }

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        return deal(self._lanes(epoch), self.global_batch_size, start)

    def _lanes(self, epoch: int) -> list[Lane]:
        rng = np.random.default_rng([self.seed, epoch])
        shards = rng.permutation(len(self.shard_sizes))
        comb = rng.random()
        edges = np.append(0.0, np.cumsum(self._shard_weights[shards]))
        edges *= self.num_samples / edges[-1]
        edges[-1] = self.num_samples  # whatever rounding said
        num_drawn = np.diff(_teeth(edges, comb))

        def rows_of(places: range, lane_idx: int, window_idx: int) -> np.ndarray:
            rng = np.random.default_rng([self.seed, epoch, 1 + lane_idx, window_idx])
            drawn = [self._draw(shards[place], edges[place : place + 2], comb, rng) for place in places]
            forget_pages(self.weights)
            return rng.permutation(np.concatenate(drawn))

        return cut_lanes(num_drawn, self.num_lanes, self.window, rows_of)

    def _draw(self, shard_idx: int, edges: np.ndarray, comb: float, rng: np.random.Generator) -> np.ndarray:
        """Return the rows of a shard whose stretch of the line is `edges`, as often as the comb meets them."""
        if edges[0] == edges[1]:
            return np.empty(0, dtype=np.int64)
        first = self._starts[shard_idx]
        # in the stored order neighbours would never be drawn together
        rows = first + rng.permutation(self.shard_sizes[shard_idx])
        sums = np.cumsum(np.asarray(self.weights[rows], dtype=np.float64))
        row_edges = np.append(edges[0], edges[0] + np.diff(edges) * (sums / sums[-1]))
        # the last edge is the shard's own: so many rows are drawn as were promised
        row_edges = np.append(np.minimum(row_edges[:-1], edges[1]), edges[1])
        return np.repeat(rows, np.diff(_teeth(row_edges, comb)))

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum(self.shard_sizes) - self.shard_sizes

    @cached_property
    def _shard_weights(self) -> np.ndarray:
        """The sum of the weights of each shard.

        Raises:
            ValueError: a weight is negative or no number.
        """
        sums = np.zeros(len(self.shard_sizes))
        num_at_once = max(1, ROWS_AT_ONCE // max(self.shard_sizes))
        for shard_idx in range(0, len(sums), num_at_once):
            starts = self._starts[shard_idx : shard_idx + num_at_once]
            stop = starts[-1] + self.shard_sizes[shard_idx + len(starts) - 1]
            weights = np.asarray(self.weights[starts[0] : stop], dtype=np.float64)
            bad = np.flatnonzero(~((weights >= 0) & np.isfinite(weights)))
            if len(bad):
                raise ValueError(
                    f"column 'weight', sample {starts[0] + bad[0]}: {weights[bad[0]]} is no weight; give numbers from 0"
                )
            sums[shard_idx : shard_idx + len(starts)] = np.add.reduceat(weights, starts - starts[0])
            forget_pages(self.weights)
        return sums


@dataclass(frozen=True)
class WeightedSettings:
    """data/order=weighted: rows in proportion to the manifest's column `weight`, `data.rows_per_epoch` an epoch."""

    @property
    def num_together(self) -> int:
        return 1

    def over(self, shards: SetColumns, epoch: EpochSettings) -> WeightedOrder:
        return WeightedOrder(
            tuple(shards.sizes),
            epoch.global_batch_size,
            column_of(shards, "weights"),
            len(shards) if epoch.num_rows is None else epoch.num_rows,
            epoch.seed,
            epoch.num_lanes,
            StreamPlan.window if epoch.window is None else epoch.window,
        )


def _teeth(edges: np.ndarray, comb: float) -> np.ndarray:
    """Return how many teeth of a comb, one apart, lie before each place of the line."""
    return np.floor(edges + comb).astype(np.int64)
