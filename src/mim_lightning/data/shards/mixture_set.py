"""Mixtures: the entries of `data.mixture`, their fractions and id namespaces, and several sets read as one.

Products are matched by id, so a mixture must say whether equal ids of two sets are the same product.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from itertools import accumulate, chain
from typing import Any

import numpy as np

from mim_lightning.data.shards.files import ShardPlan
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.types import Sample

MAIN = "main"  # name of `data.folder` beside the names in `data.mixture`
SEPARATE, SHARED = "separate", "shared"


@dataclass(frozen=True)
class MixtureEntry:
    """An entry of `data.mixture`: a prepared folder whose training samples are mixed in."""

    folder: str
    fraction: float  # of every batch, 0 to 1
    id_namespace: str | None = None  # "separate": equal ids of other sets are other products; "shared": the same


def parse_mixture(entries: Mapping[str, Mapping[str, Any] | None]) -> dict[str, MixtureEntry]:
    """Return the entries of `data.mixture` that are not null.

    Raises:
        ValueError: a key is wrong, missing or unknown; names it.
    """
    if MAIN in entries:
        raise ValueError(f"data.mixture.{MAIN}: is the name of data.folder; give the entry another name")
    return {name: _parse_entry(f"data.mixture.{name}", entry) for name, entry in entries.items() if entry is not None}


def _parse_entry(key: str, entry: Mapping[str, Any]) -> MixtureEntry:
    known = [field.name for field in fields(MixtureEntry)]
    for name in entry:
        if name not in known:
            raise ValueError(f"no config key '{key}.{name}'; there are {known}")
    for name in ("folder", "fraction"):
        if entry.get(name) is None:
            raise ValueError(f"{key}.{name}: needs a value")
    parsed = MixtureEntry(**entry)
    if not 0 < parsed.fraction <= 1:
        raise ValueError(f"{key}.fraction={parsed.fraction}: give a fraction of every batch, above 0 up to 1")
    if parsed.id_namespace not in (None, SEPARATE, SHARED):
        raise ValueError(f"{key}.id_namespace={parsed.id_namespace}: give {SEPARATE} or {SHARED}")
    return parsed


def split_fractions(mixture: Mapping[str, MixtureEntry]) -> dict[str, Fraction]:
    """Return the fraction of each set in a batch: MAIN has the remainder, and is left out if it is 0.

    Raises:
        ValueError: the fractions sum to more than 1.
    """
    fractions = {name: Fraction(str(entry.fraction)) for name, entry in mixture.items()}
    remainder = 1 - sum(fractions.values(), start=Fraction(0))
    if remainder < 0:
        raise ValueError(f"data.mixture: the fractions sum to {float(1 - remainder):g}, must be 1 at most")
    return {MAIN: remainder, **fractions} if remainder else fractions


def validate_distinct_ids(catalogs: Mapping[str, ShardSet], mixture: Mapping[str, MixtureEntry]) -> None:
    """Raise ValueError, naming two sets and an id, if sets without an id namespace have product ids in common.

    Args:
        catalogs: by name, that of `data.folder` first as MAIN.
    """
    namespaces = {MAIN: SHARED, **{name: entry.id_namespace for name, entry in mixture.items()}}
    names = [name for name in catalogs if namespaces[name] != SEPARATE]
    for idx, name in enumerate(names):
        for other in names[:idx] if namespaces[name] is None else ():
            catalog = catalogs[name]
            common = np.flatnonzero(np.isin(catalog.keys, catalogs[other].keys))
            if len(common):
                product_id = catalog.read_facts(int(common[0]))["product_id"]
                raise ValueError(
                    f"data.mixture.{name}: {len(common)} of its products have ids of {catalogs[other].folder} too, the "
                    f"first is '{product_id}'; give data.mixture.{name}.id_namespace={SHARED} if they are the same "
                    f"products, {SEPARATE} if they are others"
                )


class ConcatShardSet(ShardSet):
    """The samples of several sets, concatenated: numbers continue from one set to the next.

    Args:
        sets: by name.
        own_ids: sets whose product and query ids are prefixed with their name and a colon.

    Attributes:
        own_ids: the same.
    """

    def __init__(self, sets: Mapping[str, ShardSet], own_ids: Set[str] = frozenset()) -> None:
        self.sets, self.own_ids = dict(sets), own_ids
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
        """Return one value per sample, set after set (hashed ids without the prefix)."""
        return np.concatenate([part.column(name) for part in self._parts])

    def read(self, numbers: Iterable[int], is_padding: bool = False) -> list[Sample]:
        return self._read(numbers, lambda part, number: part.read([number], is_padding))

    def read_few(self, numbers: Iterable[int]) -> list[Sample]:
        return self._read(numbers, lambda part, number: part.read_few([number]))

    def _read(self, numbers: Iterable[int], read: Callable[[ShardSet, int], list[Sample]]) -> list[Sample]:
        samples = []
        for number in map(int, numbers):
            set_idx, number_in_set = self._find_set(self._set_starts, number)
            (sample,) = read(self._parts[set_idx], number_in_set)
            samples.append(_with_prefix(replace(sample, sample_num=number), self._prefixes[set_idx]))
        return samples

    def read_facts(self, number: int) -> dict[str, Any]:
        set_idx, number_in_set = self._find_set(self._set_starts, number)
        return self._parts[set_idx].read_facts(number_in_set)

    def all_facts(self) -> Iterator[dict[str, Any]]:
        return chain.from_iterable(part.all_facts() for part in self._parts)

    @property
    def digest(self) -> str:
        return "+".join(part.digest for part in self._parts)

    @property
    def prefetch_shards(self) -> int:
        return max(part.prefetch_shards for part in self._parts)

    @property
    def cache_room(self) -> int | None:
        return min((room for part in self._parts if (room := part.cache_room) is not None), default=None)

    def shard_bytes(self, shard_idx: int) -> int:
        set_idx, idx_in_set = self._find_set(self._first_shards, shard_idx)
        part = self._parts[set_idx]
        return 0 if part.cache_room is None else part.shard_bytes(idx_in_set)

    @property
    def patience(self) -> float:
        return max(part.patience for part in self._parts)

    def shard_name(self, shard_idx: int) -> str:
        set_idx, idx_in_set = self._find_set(self._first_shards, shard_idx)
        return self._parts[set_idx].shard_name(idx_in_set)

    def plan(self, plan: ShardPlan) -> None:
        for part, first in zip(self._parts, self._first_shards, strict=False):
            part.plan(plan.of_set(first, len(part.sizes)))

    def stop(self, reader: str) -> None:
        for part in self._parts:
            part.stop(reader)

    @staticmethod
    def _find_set(starts: list[int], number: int) -> tuple[int, int]:
        set_idx = bisect_right(starts, number) - 1
        return set_idx, number - starts[set_idx]


def _with_prefix(sample: Sample, prefix: str) -> Sample:
    if not prefix:
        return sample
    return replace(
        sample,
        query_id=None if sample.query_id is None else prefix + sample.query_id,
        product_id=None if sample.product_id is None else prefix + sample.product_id,
        target_ids=tuple(prefix + product_id for product_id in sample.target_ids),
        reference_ids=tuple(prefix + product_id for product_id in sample.reference_ids),
    )
