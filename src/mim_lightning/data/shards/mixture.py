"""The entries of `data.mix`: which other sets are trained on, by which share, and what their ids mean.

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

MAIN = "main"  # what `data.folder` is called beside the names of `data.mix`
OWN, SHARED = "own", "shared"


@dataclass(frozen=True)
class MixedIn:
    """An entry of `data.mix`: a prepared folder whose training rows are mixed in."""

    folder: str
    share: float  # of every batch, 0 to 1
    ids: str | None = None  # "own": they mean other products than equal ids elsewhere; "shared": the same ones


def read_mix(entries: Mapping[str, Mapping[str, Any] | None]) -> dict[str, MixedIn]:
    """Return the entries of `data.mix` that are not null.

    Raises:
        ValueError: naming the key that is wrong, missing or unknown.
    """
    if MAIN in entries:
        raise ValueError(f"data.mix.{MAIN}: is what data.folder is called; give the entry another name")
    return {name: _read_entry(f"data.mix.{name}", entry) for name, entry in entries.items() if entry is not None}


def _read_entry(where: str, entry: Mapping[str, Any]) -> MixedIn:
    known = [field.name for field in fields(MixedIn)]
    for key in entry:
        if key not in known:
            raise ValueError(f"no config key '{where}.{key}'; there are {known}")
    for key in ("folder", "share"):
        if entry.get(key) is None:
            raise ValueError(f"{where}.{key}: needs a value")
    made = MixedIn(**entry)
    if not 0 < made.share <= 1:
        raise ValueError(f"{where}.share={made.share}: give a share of every batch, above 0 up to 1")
    if made.ids not in (None, OWN, SHARED):
        raise ValueError(f"{where}.ids={made.ids}: give {OWN} or {SHARED}")
    return made


def split_shares(mix: Mapping[str, MixedIn]) -> dict[str, Fraction]:
    """Return the share of each set in a batch: what the mix leaves of it belongs to MAIN, which is left out at 0.

    Raises:
        ValueError: the mix takes more than a whole.
    """
    shares = {name: Fraction(str(entry.share)) for name, entry in mix.items()}
    left = 1 - sum(shares.values(), start=Fraction(0))
    if left < 0:
        raise ValueError(f"data.mix: the shares sum to {float(1 - left):g}; they are of one whole batch")
    return {MAIN: left, **shares} if left else shares


def refuse_common_ids(catalogues: Mapping[str, ShardSet], mix: Mapping[str, MixedIn]) -> None:
    """Refuse sets with common product ids unless config says what these mean.

    Args:
        catalogues: by name, that of `data.folder` first as MAIN.

    Raises:
        ValueError: naming two sets and a common id.
    """
    meanings = {MAIN: SHARED, **{name: entry.ids for name, entry in mix.items()}}
    names = [name for name in catalogues if meanings[name] != OWN]
    for place, name in enumerate(names):
        for other in names[:place] if meanings[name] is None else ():
            _refuse_common(name, catalogues[name], catalogues[other])


def _refuse_common(name: str, catalogue: ShardSet, other: ShardSet) -> None:
    common = np.flatnonzero(np.isin(catalogue.keys, other.keys))
    if len(common):
        product_id = catalogue.read_facts(int(common[0]))["product_id"]
        raise ValueError(
            f"data.mix.{name}: {len(common)} of its products have ids of {other.folder} too, the first is "
            f"'{product_id}'; give data.mix.{name}.ids={SHARED} if they are the same products, {OWN} if they are others"
        )
