"""The mixture order: every global batch takes a fixed fraction of its rows from each of several sets.

Each set is an endless stream, epoch after epoch of its own order; how far each is after some batches is a formula, so
a position is still (epoch, samples consumed).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Any

import numpy as np

from mim_lightning.data.sampling.order import BatchOrder, EpochSettings, OrderSettings, StateKey, StreamedOrder
from mim_lightning.data.shards.mixture_set import ConcatShardSet


@dataclass(frozen=True)
class MixturePart:
    """One set of a mixture."""

    order: BatchOrder
    fraction: Fraction
    first_number: int  # of its samples in the ConcatShardSet


@dataclass(frozen=True, eq=False)
class MixtureOrder:
    """Batches with a fixed fraction of each set; an epoch is `num_batches` of them, always full.

    After any number of batches a set is less than one row off its fraction (one group of rows, if its order keeps rows
    together). A set starts again when it is exhausted, at any point in an epoch of the mixture: each of its rows occurs
    once before any occurs again, except the rows, different ones each time, that complete its last group. The rows of
    a batch are interleaved evenly, so that every rank gets the same fraction of each set.
    """

    parts: Mapping[str, MixturePart]
    global_batch_size: int
    num_batches: int
    group_size: int = 1

    def __post_init__(self) -> None:
        assert sum(part.fraction for part in self.parts.values()) == 1, "fractions sum to 1"
        for name, part in self.parts.items():
            if part.fraction * self._num_groups < 1:
                raise ValueError(
                    f"data.mixture: {float(part.fraction):g} of a batch of {self.global_batch_size} for '{name}' is "
                    f"less than {self.group_size} rows; give a larger fraction or data.batch_size"
                )

    @property
    def num_samples(self) -> int:
        return self.num_batches * self.global_batch_size

    @property
    def shuffle(self) -> bool:
        return True

    def state_key(self) -> StateKey:
        first, *others = [(name, part.order.state_key()) for name, part in self.parts.items()]
        return {
            **first[1],
            "order": f"mix of {first[1]['order']}",
            "batch_size": self.global_batch_size,
            "rows_per_epoch": self.num_samples,
            "mix": " + ".join(f"{part.fraction} {name}" for name, part in self.parts.items()),
            **{f"mix.{name}.{key}": value for name, state in others for key, value in state.items()},
        }

    def passes(self) -> dict[str, StreamedOrder]:
        return {name: order for name, part in self.parts.items() for order in part.order.passes().values()}

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        first_batch = epoch * self.num_batches - (-start // self.global_batch_size)
        streams = [
            _Stream(part, done, self.group_size)
            for part, done in zip(self.parts.values(), self._taken(first_batch), strict=True)
        ]
        for batch in range(first_batch, (epoch + 1) * self.num_batches):
            counts = np.subtract(self._taken(batch + 1), self._taken(batch))
            yield self._interleave([stream.take(int(count)) for stream, count in zip(streams, counts, strict=True)])

    @property
    def _num_groups(self) -> int:
        return self.global_batch_size // self.group_size

    def _taken(self, num_batches: int) -> list[int]:
        """Return how many rows of each set the first batches of the run have.

        The running totals of the fractions, in the order of the sets, are rounded; their differences sum to the whole.
        """
        totals = accumulate(part.fraction * self._num_groups * num_batches for part in self.parts.values())
        edges = [0, *(math.floor(total + Fraction(1, 2)) for total in totals)]
        return [self.group_size * (stop - start) for start, stop in pairwise(edges)]

    def _interleave(self, rows_of_sets: list[np.ndarray]) -> np.ndarray:
        groups = [rows.reshape(-1, self.group_size) for rows in rows_of_sets]
        positions = np.concatenate([(np.arange(len(part)) + 0.5) / max(1, len(part)) for part in groups])
        return np.concatenate(groups)[np.argsort(positions, kind="stable")].ravel()


class _Stream:
    """The endless rows of one set, from any position on."""

    def __init__(self, part: MixturePart, num_done: int, group_size: int) -> None:
        self.part = part
        # an incomplete last group is completed, otherwise every group after it would be split
        self.num_missing = -part.order.num_samples % group_size
        self._pieces = self._read(*divmod(num_done, part.order.num_samples + self.num_missing))
        self._leftover = np.empty(0, dtype=np.int64)

    def take(self, count: int) -> np.ndarray:
        pieces, missing = [self._leftover], count - len(self._leftover)
        while missing > 0:
            pieces.append(next(self._pieces))
            missing -= len(pieces[-1])
        rows = np.concatenate(pieces)
        self._leftover = rows[count:]
        return rows[:count] + self.part.first_number

    def _read(self, epoch: int, start: int) -> Iterator[np.ndarray]:
        order = self.part.order
        while True:
            done = start // order.global_batch_size * order.global_batch_size
            for batch in order.batches(epoch, done):
                yield batch[start - done :]
                done += len(batch)
                start = max(start, done)
            if self.num_missing:
                yield np.resize(next(order.batches(epoch)), self.num_missing)[start - done :]
            epoch, start = epoch + 1, 0


def make_mixture_order(
    shards: ConcatShardSet,
    fractions: Mapping[str, Fraction],
    each: OrderSettings,
    epoch: EpochSettings,
    state: Mapping[str, Any] = MappingProxyType({}),
) -> MixtureOrder:
    """Return the order of a mixture.

    Args:
        fractions: of every set of `shards`, summing to 1.
        each: the order within each set.
        epoch: `num_rows` None is one pass over the first set.
        state: of the loader of a run that resumes, see `EpochSettings.resume`.

    Raises:
        ValueError: a fraction is too small, or the order does not suit a set.
    """
    num_groups, leftover = divmod(epoch.global_batch_size, each.group_size)
    if leftover:
        raise ValueError(f"data.batch_size={epoch.global_batch_size}: must be a multiple of {each.group_size}")
    parts: dict[str, MixturePart] = {}
    for name, fraction in fractions.items():
        own = shards.sets[name]
        batch_size = each.group_size * max(1, round(fraction * num_groups))
        num_streams = min(epoch.num_streams, len(own.sizes), batch_size // each.group_size)
        settings = EpochSettings(batch_size, epoch.seed, num_streams, epoch.window)
        settings = settings.resume(state, f"mix.{name}." if parts else "")
        parts[name] = MixturePart(each.for_shards(own, settings), fraction, shards.set_start(name))
    first = next(iter(parts.values()))
    num_rows = epoch.num_rows or math.ceil(first.order.num_samples / first.fraction)
    return MixtureOrder(parts, epoch.global_batch_size, -(-num_rows // epoch.global_batch_size), each.group_size)
