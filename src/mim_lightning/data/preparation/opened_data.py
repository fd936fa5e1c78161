"""The shard sets that one run or evaluation reads, each opened once.

Make one `OpenedData` a process and pass it on: opening a set reads its whole index, at an address after several
requests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from mim_lightning.data.preparation.prepared import MissingSplitError, PreparedData, open_prepared
from mim_lightning.data.shards.cache import CacheSettings
from mim_lightning.data.shards.mixture_set import (
    MAIN,
    SEPARATE,
    ConcatShardSet,
    MixtureEntry,
    split_fractions,
    validate_distinct_ids,
)
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.io.paths import PathOrUrl, to_path_or_url

DISTRACTORS = "distractors"  # name of `data.distractors` beside those of a mixture


class OpenedData:
    """Training rows, evaluation queries and gallery; each set is opened at its first use, and kept.

    Args:
        folder: prepared data, or the address of such.
        train_split, val_split: splits that are trained on and evaluated.
        distractors: other prepared data, whose catalog joins the gallery.
        mix: further prepared data to train on, by name.
        cache: of shards at an address.
        prepared: the data in `folder`, if they were opened before.
        versions: of the data to read, by name: MAIN, DISTRACTORS, or as in `mix`; of others the newest.

    Raises:
        ValueError: at the first use of a set that does not exist or is not finished.
    """

    def __init__(
        self,
        folder: PathOrUrl,
        train_split: str,
        val_split: str,
        distractors: PathOrUrl | None = None,
        mix: Mapping[str, MixtureEntry] | None = None,
        cache: CacheSettings | None = None,
        prepared: PreparedData | None = None,
        versions: Mapping[str, int] | None = None,
    ) -> None:
        self.folder, self.train_split, self.val_split = folder, train_split, val_split
        self.distractors, self.mix, self.cache = distractors, dict(mix or {}), cache
        self.wanted_versions = dict(versions or {})
        self._prepared: dict[str, PreparedData] = {}
        if prepared is not None and self.wanted_versions.get(MAIN, prepared.version) == prepared.version:
            self._prepared[MAIN] = prepared

    @cached_property
    def train(self) -> ShardSet:
        """The training rows: one set, or several read as one."""
        if self.mix:
            sets = {name: self._open(name).queries(self.train_split) for name in split_fractions(self.mix)}
            return ConcatShardSet(sets, {name for name, entry in self.mix.items() if entry.id_namespace == SEPARATE})
        try:
            return self._open(MAIN).queries(self.train_split)
        except MissingSplitError as error:
            prepared = self._open(MAIN)
            meant = (prepared.describe().get("settings") or {}).get("train_split")
            if meant in prepared.splits():
                raise ValueError(f"{error}; it was prepared to train on data.shards.train_split={meant}") from None
            raise ValueError(
                f"{error}: these data can be evaluated, not trained on; name the split to train on with "
                "data.shards.train_split, and prepare again with overwrite=true"
            ) from None

    @cached_property
    def queries(self) -> ShardSet:
        """The queries of the evaluated split."""
        try:
            return self._open(MAIN).queries(self.val_split)
        except MissingSplitError as error:
            raise ValueError(f"{error}; name the one to evaluate: data.val_split, or split of evaluate") from None

    @property
    def prepared(self) -> PreparedData:
        """The data that are evaluated."""
        return self._open(MAIN)

    @property
    def catalog(self) -> ShardSet:
        return self.prepared.catalog()

    @cached_property
    def gallery(self) -> list[ShardSet]:
        """The sets that make up the gallery: the catalog, and distractors if there are any."""
        others = [] if self.distractors is None else [self._open(DISTRACTORS).catalog()]
        return [self.catalog, *others]

    @property
    def train_catalogs(self) -> dict[str, ShardSet]:
        """The catalog of each set that is trained on, by name."""
        return {name: self._open(name).catalog() for name in (split_fractions(self.mix) if self.mix else (MAIN,))}

    def validate_distractors(self) -> None:
        """Check that no distractor is a product of the catalog.

        Raises:
            ValueError: naming the first that is.
        """
        for distractors in self.gallery[1:]:
            known = np.flatnonzero(np.isin(distractors.keys, self.catalog.keys))
            if len(known):
                product_id = distractors.read_facts(int(known[0]))["product_id"]
                raise ValueError(
                    f"data.distractors={self.distractors}: {len(known)} of its products are in the catalog of "
                    f"{self.folder} too, the first is '{product_id}'; give a set with other product ids"
                )

    def validate_mix(self) -> None:
        """Check that config says whether equal product ids of several sets mean one product.

        Raises:
            ValueError: see `validate_distinct_ids`.
        """
        if self.mix:
            validate_distinct_ids({name: self._open(name).catalog() for name in (MAIN, *self.mix)}, self.mix)

    @property
    def versions(self) -> dict[str, int]:
        """The version of the data by name; all are opened, so that they cannot change any more."""
        return {name: self._open(name).version for name in self._places}

    @property
    def _places(self) -> dict[str, PathOrUrl]:
        others = {} if self.distractors is None else {DISTRACTORS: self.distractors}
        return {MAIN: self.folder, **others, **{name: entry.folder for name, entry in self.mix.items()}}

    def _open(self, name: str) -> PreparedData:
        if name not in self._prepared:
            self._prepared[name] = open_prepared(str(self._places[name]), self.cache, self.wanted_versions.get(name))
        return self._prepared[name]


def parse_versions(version: int | Mapping[str, int] | None, names: Collection[str]) -> dict[str, int]:
    """Return what `data.version` says: a version of the data in `data.folder`, or versions by name.

    Args:
        names: of the data that there are.

    Raises:
        ValueError: it is no version, or of data that there are not; names the key.
    """
    given = {MAIN: version} if not isinstance(version, Mapping) else version
    for name, number in given.items():
        if name not in names:
            raise ValueError(f"data.version.{name}: there are no such data; there are {', '.join(names)}")
        if number is not None and (type(number) is not int or number < 1):
            raise ValueError(f"data.version={version}: give a whole number from 1, or {{{MAIN}: 1, ...}}")
    return {name: number for name, number in given.items() if number is not None}


def find_versions(data: Mapping[str, Any]) -> dict[str, int]:
    """Return the versions that a `data` section reads by name: those it gives, of others the newest.

    Data that are not prepared yet will be of the first version.
    """
    places = {MAIN: data["folder"]}
    if data.get("distractors"):
        places[DISTRACTORS] = data["distractors"]
    places |= {name: entry["folder"] for name, entry in (data.get("mixture") or {}).items() if entry}
    found = {name: PreparedData(to_path_or_url(str(place))) for name, place in places.items()}
    given = parse_versions(data.get("version"), places)
    return {name: given.get(name) or prepared.version for name, prepared in found.items()}
