"""Which shard a row stands in, when no process knows all rows: the one its id is hashed to.

Rows by set come in as counts, shard numbers over all sets go out. The same ids always make the same shards, however
many machines write and in whatever order; sizes vary by chance, by about the square root of the mean.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from mim_lightning.ids import id_key

NAMES_PER_SHARD = 1_000_000  # sample names of a shard begin at its number times this


@dataclass(frozen=True)
class HashLayout:
    """How many shards each set has; shards are numbered through all sets, in the order of their names."""

    num_shards: Mapping[str, int]  # by set name
    seed: int  # of the order of training rows

    @property
    def num_all(self) -> int:
        return sum(self.num_shards.values())

    def shard_of(self, set_name: str, identity: str) -> int:
        """Return the shard, numbered through all sets, that the rows of a query or product stand in."""
        return self.number(set_name, id_key(f"{self.seed}/{identity}") % self.num_shards[set_name])

    def number(self, set_name: str, shard_idx: int) -> int:
        names = list(self.num_shards)
        return sum(self.num_shards[name] for name in names[: names.index(set_name)]) + shard_idx

    def place(self, number: int) -> tuple[str, int]:
        """Return the set and the number in it of a shard."""
        starts = list(accumulate(self.num_shards.values(), initial=0))
        set_idx = bisect_right(starts, number) - 1
        return list(self.num_shards)[set_idx], number - starts[set_idx]

    def rank(self, identity: str) -> int:
        """Return what the rows of a shard are sorted by."""
        return id_key(f"{self.seed}:{identity}")


def plan_layout(num_rows: Mapping[str, int], samples_per_shard: int, seed: int) -> HashLayout:
    """Return as few shards a set as hold its rows on average."""
    num_shards = {name: max(1, -(-rows // samples_per_shard)) for name, rows in sorted(num_rows.items())}
    largest = max((rows // num_shards[name] for name, rows in num_rows.items()), default=0)
    if 2 * largest >= NAMES_PER_SHARD:
        raise ValueError(f"data.shards.samples_per_shard={samples_per_shard}: at most {NAMES_PER_SHARD // 2}")
    return HashLayout(num_shards, seed)
