"""The mixed order: every global batch takes its share of rows from each of several sets.

A MixedSet, shares and the order that each set is to have come in, global batches go out (see `order.Order`). Each set
is an endless stream, epoch after epoch of its own order; how far each has come after so many batches is a formula, so
a position is still (epoch, samples consumed).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise

import numpy as np

from mim_lightning.data.sampling.order import EpochSettings, Order, OrderSettings
from mim_lightning.data.shards.mixture_set import MixedSet


@dataclass(frozen=True)
class MixedPart:
    """One set of a mix."""

    order: Order
    share: Fraction
    first_number: int  # of its samples in the MixedSet


@dataclass(frozen=True, eq=False)
class MixedOrder:
    """Batches that hold each set by its share; an epoch is `num_batches` of them, always full.

    After any number of batches a set is less than one row off its share (one group of rows, where its order keeps rows
    together). A set begins anew when it is through, wherever in an epoch of the mix that is: each of its rows comes
    once before any comes again, but for the rows, other ones each time, that fill up its last group. Batches are
    interleaved evenly, so that every rank gets its share of each set.
    """

    parts: Mapping[str, MixedPart]
    global_batch_size: int
    num_batches: int
    num_together: int = 1

    def __post_init__(self) -> None:
        assert sum(part.share for part in self.parts.values()) == 1, "shares are of one whole"
        for name, part in self.parts.items():
            if part.share * self._num_groups < 1:
                raise ValueError(
                    f"data.mix: {float(part.share):g} of a batch of {self.global_batch_size} for '{name}' is less than "
                    f"{self.num_together} rows; give a larger share or data.batch_size"
                )

    @property
    def num_samples(self) -> int:
        return self.num_batches * self.global_batch_size

    @property
    def shuffle(self) -> bool:
        return True

    def fixed(self) -> dict[str, int | float | str]:
        first, *others = [(name, part.order.fixed()) for name, part in self.parts.items()]
        return {
            **first[1],
            "order": f"mix of {first[1]['order']}",
            "batch_size": self.global_batch_size,
            "rows_per_epoch": self.num_samples,
            "mix": " + ".join(f"{part.share} {name}" for name, part in self.parts.items()),
            **{f"mix.{name}.{key}": value for name, fixed in others for key, value in fixed.items()},
        }

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        first_batch = epoch * self.num_batches - (-start // self.global_batch_size)
        streams = [
            _Stream(part, done, self.num_together)
            for part, done in zip(self.parts.values(), self._taken(first_batch), strict=True)
        ]
        for batch in range(first_batch, (epoch + 1) * self.num_batches):
            counts = np.subtract(self._taken(batch + 1), self._taken(batch))
            yield self._interleave([stream.take(int(count)) for stream, count in zip(streams, counts, strict=True)])

    @property
    def _num_groups(self) -> int:
        return self.global_batch_size // self.num_together

    def _taken(self, num_batches: int) -> list[int]:
        """Return how many rows of each set so many batches of the run hold.

        The running totals of the shares, in the order of the sets, are rounded; differences of these sum to the whole.
        """
        totals = accumulate(part.share * self._num_groups * num_batches for part in self.parts.values())
        edges = [0, *(math.floor(total + Fraction(1, 2)) for total in totals)]
        return [self.num_together * (stop - start) for start, stop in pairwise(edges)]

    def _interleave(self, rows_of_sets: list[np.ndarray]) -> np.ndarray:
        groups = [rows.reshape(-1, self.num_together) for rows in rows_of_sets]
        places = np.concatenate([(np.arange(len(part)) + 0.5) / max(1, len(part)) for part in groups])
        return np.concatenate(groups)[np.argsort(places, kind="stable")].ravel()


class _Stream:
    """The rows of one set without end, from any of them on."""

    def __init__(self, part: MixedPart, num_done: int, num_together: int) -> None:
        self.part = part
        # a last group that lacks rows is filled up, else every group after it would be torn
        self.num_missing = -part.order.num_samples % num_together
        self._pieces = self._read(*divmod(num_done, part.order.num_samples + self.num_missing))
        self._rest = np.empty(0, dtype=np.int64)

    def take(self, count: int) -> np.ndarray:
        pieces, missing = [self._rest], count - len(self._rest)
        while missing > 0:
            pieces.append(next(self._pieces))
            missing -= len(pieces[-1])
        rows = np.concatenate(pieces)
        self._rest = rows[count:]
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


def mix_orders(
    shards: MixedSet, shares: Mapping[str, Fraction], each: OrderSettings, epoch: EpochSettings
) -> MixedOrder:
    """Return the order over a mix.

    Args:
        shares: of every set of `shards`, 1 together.
        each: the order that every set has for itself.
        epoch: `num_rows` None is one pass over the first set.

    Raises:
        ValueError: a share is too small, or the order does not suit a set.
    """
    num_groups, rest = divmod(epoch.global_batch_size, each.num_together)
    if rest:
        raise ValueError(f"data.batch_size={epoch.global_batch_size}: must be a multiple of {each.num_together}")
    parts: dict[str, MixedPart] = {}
    for name, share in shares.items():
        own = shards.sets[name]
        batch_size = each.num_together * max(1, round(share * num_groups))
        num_lanes = min(epoch.num_lanes, len(own.sizes), batch_size // each.num_together)
        settings = EpochSettings(batch_size, epoch.seed, num_lanes, epoch.window)
        parts[name] = MixedPart(each.over(own, settings), share, shards.set_start(name))
    first = next(iter(parts.values()))
    num_rows = epoch.num_rows or math.ceil(first.order.num_samples / first.share)
    return MixedOrder(parts, epoch.global_batch_size, -(-num_rows // epoch.global_batch_size), each.num_together)
