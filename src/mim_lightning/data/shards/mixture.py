"""The entries of `data.mixture`: which other sets are trained on, in which fraction, and what their ids mean.

Plain config comes in from `lit.datamodule`, checked entries and shares go out. Products are matched by id, so whether
equal ids of two sets are one product must be said wherever there are some.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import numpy as np

from mim_lightning.data.shards.shard_set import ShardSet

MAIN = "main"  # what `data.folder` is called beside the names of `data.mixture`
SEPARATE, SHARED = "separate", "shared"


@dataclass(frozen=True)
class MixtureEntry:
    """An entry of `data.mixture`: a prepared folder whose training rows are mixed in."""

    folder: str
    fraction: float  # of every batch, 0 to 1
    id_namespace: str | None = None  # "separate": ids mean other products than equal ids elsewhere; "shared": the same


def parse_mixture(entries: Mapping[str, Mapping[str, Any] | None]) -> dict[str, MixtureEntry]:
    """Return the entries of `data.mixture` that are not null.

    Raises:
        ValueError: naming the key that is wrong, missing or unknown.
    """
    if MAIN in entries:
        raise ValueError(f"data.mixture.{MAIN}: is what data.folder is called; give the entry another name")
    return {name: _read_entry(f"data.mixture.{name}", entry) for name, entry in entries.items() if entry is not None}


def _read_entry(where: str, entry: Mapping[str, Any]) -> MixtureEntry:
    known = [field.name for field in fields(MixtureEntry)]
    for key in entry:
        if key not in known:
            raise ValueError(f"no config key '{where}.{key}'; there are {known}")
    for key in ("folder", "fraction"):
        if entry.get(key) is None:
            raise ValueError(f"{where}.{key}: needs a value")
    made = MixtureEntry(**entry)
    if not 0 < made.fraction <= 1:
        raise ValueError(f"{where}.fraction={made.fraction}: give a fraction of every batch, above 0 up to 1")
    if made.id_namespace not in (None, SEPARATE, SHARED):
        raise ValueError(f"{where}.id_namespace={made.id_namespace}: give {SEPARATE} or {SHARED}")
    return made


def split_fractions(mix: Mapping[str, MixtureEntry]) -> dict[str, Fraction]:
    """Return the share of each set in a batch: what the mix leaves of it belongs to MAIN, which is left out at 0.

    Raises:
        ValueError: the mix takes more than a whole.
    """
    shares = {name: Fraction(str(entry.fraction)) for name, entry in mix.items()}
    left = 1 - sum(shares.values(), start=Fraction(0))
    if left < 0:
        raise ValueError(f"data.mixture: the fractions sum to {float(1 - left):g}; they are of one whole batch")
    return {MAIN: left, **shares} if left else shares


def validate_distinct_ids(catalogues: Mapping[str, ShardSet], mix: Mapping[str, MixtureEntry]) -> None:
    """Refuse sets with common product ids unless config says what these mean.

    Args:
        catalogues: by name, that of `data.folder` first as MAIN.

    Raises:
        ValueError: naming two sets and a common id.
    """
    meanings = {MAIN: SHARED, **{name: entry.id_namespace for name, entry in mix.items()}}
    names = [name for name in catalogues if meanings[name] != SEPARATE]
    for place, name in enumerate(names):
        for other in names[:place] if meanings[name] is None else ():
            _refuse_common(name, catalogues[name], catalogues[other])


def _refuse_common(name: str, catalogue: ShardSet, other: ShardSet) -> None:
    common = np.flatnonzero(np.isin(catalogue.keys, other.keys))
    if len(common):
        product_id = catalogue.read_facts(int(common[0]))["product_id"]
        raise ValueError(
            f"data.mixture.{name}: {len(common)} of its products have ids of {other.folder} too, the first is "
            f"'{product_id}'; give data.mixture.{name}.id_namespace={SHARED} if they are the same products, "
            f"{SEPARATE} if they are others"
        )
