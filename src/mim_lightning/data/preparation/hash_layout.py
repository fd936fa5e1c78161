"""A layout of shards for processes that do not see all rows: the hash of a row's id decides its shard.

The same ids always make the same shards, for any number of machines in any order; sizes vary by about the square root
of their mean.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from mim_lightning.ids import hash_id

NAMES_PER_SHARD = 1_000_000  # the first sample name of a shard is its number times this


@dataclass(frozen=True)
class HashLayout:
    """The number of shards of each set; shards are numbered through all sets, in the order of their names."""

    num_shards: Mapping[str, int]  # by set name
    seed: int  # of the order of training rows

    @property
    def num_all(self) -> int:
        return sum(self.num_shards.values())

    def shard_of(self, set_name: str, identity: str) -> int:
        """Return the shard, numbered through all sets, of the rows of a query or product."""
        return self.number(set_name, hash_id(f"{self.seed}/{identity}") % self.num_shards[set_name])

    def number(self, set_name: str, shard_idx: int) -> int:
        names = list(self.num_shards)
        return sum(self.num_shards[name] for name in names[: names.index(set_name)]) + shard_idx

    def locate(self, number: int) -> tuple[str, int]:
        """Return the set of a shard, and its number there."""
        starts = list(accumulate(self.num_shards.values(), initial=0))
        set_idx = bisect_right(starts, number) - 1
        return list(self.num_shards)[set_idx], number - starts[set_idx]

    def rank(self, identity: str) -> int:
        """Return the key by which the rows of a shard are sorted."""
        return hash_id(f"{self.seed}:{identity}")


def plan_layout(num_rows: Mapping[str, int], samples_per_shard: int, seed: int) -> HashLayout:
    """Return a layout with the given number of samples a shard on average, at most.

    Raises:
        ValueError: too many samples for the names of a shard.
    """
    num_shards = {name: max(1, -(-rows // samples_per_shard)) for name, rows in sorted(num_rows.items())}
    largest = max((rows // num_shards[name] for name, rows in num_rows.items()), default=0)
    if 2 * largest >= NAMES_PER_SHARD:
        raise ValueError(f"data.shards.samples_per_shard={samples_per_shard}: at most {NAMES_PER_SHARD // 2}")
    return HashLayout(num_shards, seed)
