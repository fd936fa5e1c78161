"""Several training sets read as one: the rows of the first, then those of the second, and so on.

Shard sets by name come in, a ShardSet goes out; `lit.datamodule` builds it of `data.folder` and the entries of
`mix`, `mixed_order` says which rows meet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.types import Sample


class ConcatShardSet(ShardSet):
    """The samples of several sets under numbers that go on from one to the next.

    Args:
        sets: by name.
        own_ids: sets whose product and query ids get their name and a colon before them when they are read.
    """

    def __init__(self, sets: Mapping[str, ShardSet], own_ids: Set[str] = frozenset()) -> None:
        self.sets = dict(sets)
        self._parts = list(sets.values())
        self._prefixes = [f"{name}:" if name in own_ids else "" for name in sets]
        self._set_starts = [0, *accumulate(map(len, self._parts))]
        self._first_shards = [0, *accumulate(len(part.sizes) for part in self._parts)]
        self.sizes = [size for part in self._parts for size in part.sizes]
        self._starts = np.append(0, np.cumsum(self.sizes))
        self.max_relevant = max(part.max_relevant for part in self._parts)
        self.folder = " + ".join(str(part.folder) for part in self._parts)

    def set_start(self, name: str) -> int:
        """Return the number of a set's first sample."""
        return self._set_starts[list(self.sets).index(name)]

    def column(self, name: str) -> np.ndarray:
        """Return one value a sample, one set after the other, as each set has it (ids without the set's name)."""
        return np.concatenate([part.column(name) for part in self._parts])

    def read(self, numbers: Iterable[int], is_padding: bool = False) -> list[Sample]:
        samples = []
        for number in map(int, numbers):
            set_idx, own_number = self._find_set(self._set_starts, number)
            (sample,) = self._parts[set_idx].read([own_number], is_padding)
            samples.append(_under_name(replace(sample, sample_num=number), self._prefixes[set_idx]))
        return samples

    def read_facts(self, number: int) -> dict[str, Any]:
        set_idx, own_number = self._find_set(self._set_starts, number)
        return self._parts[set_idx].read_facts(own_number)

    @property
    def digest(self) -> str:
        return "+".join(part.digest for part in self._parts)

    @property
    def prefetch_shards(self) -> int:
        return max(part.prefetch_shards for part in self._parts)

    @property
    def patience(self) -> float:
        return max(part.patience for part in self._parts)

    def shard_name(self, shard_idx: int) -> str:
        set_idx, own_idx = self._find_set(self._first_shards, shard_idx)
        return self._parts[set_idx].shard_name(own_idx)

    def prefetch(self, shard_idxs: Iterable[int]) -> None:
        for shard_idx in shard_idxs:  # one by one: in the order in which they will be needed
            set_idx, own_idx = self._find_set(self._first_shards, shard_idx)
            self._parts[set_idx].prefetch([own_idx])

    @staticmethod
    def _find_set(starts: list[int], number: int) -> tuple[int, int]:
        set_idx = bisect_right(starts, number) - 1
        return set_idx, number - starts[set_idx]


def _under_name(sample: Sample, prefix: str) -> Sample:
    if not prefix:
        return sample
    return replace(
        sample,
        query_id=None if sample.query_id is None else prefix + sample.query_id,
        product_id=None if sample.product_id is None else prefix + sample.product_id,
        asked_ids=tuple(prefix + product_id for product_id in sample.asked_ids),
        shown_ids=tuple(prefix + product_id for product_id in sample.shown_ids),
    )
