"""The shard sets that one run or evaluation reads, each opened once.

Make one `OpenedData` a process and pass it on: opening a set reads its whole index, at an address after several
requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

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
from mim_lightning.io.paths import PathOrUrl


class OpenedData:
    """Training rows, evaluation queries and gallery; each set is opened at its first use, and kept.

    Args:
        folder: prepared data, or the address of such.
        train_split, val_split: splits that are trained on and evaluated.
        distractors: other prepared data, whose catalog joins the gallery.
        mix: further prepared data to train on, by name.
        cache: of shards at an address.
        prepared: the data in `folder`, if they were opened before.

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
    ) -> None:
        self.folder, self.train_split, self.val_split = folder, train_split, val_split
        self.distractors, self.mix, self.cache = distractors, dict(mix or {}), cache
        self._prepared = {str(folder): prepared} if prepared is not None else {}

    @cached_property
    def train(self) -> ShardSet:
        """The training rows: one set, or several read as one."""
        if self.mix:
            sets = {
                name: self._open(self._places[name]).queries(self.train_split) for name in split_fractions(self.mix)
            }
            return ConcatShardSet(sets, {name for name, entry in self.mix.items() if entry.id_namespace == SEPARATE})
        try:
            return self._open(self.folder).queries(self.train_split)
        except MissingSplitError as error:
            raise ValueError(
                f"{error}: these data can be evaluated, not trained on; name the split to train on with "
                "data.shards.train_split, and prepare again with overwrite=true"
            ) from None

    @cached_property
    def queries(self) -> ShardSet:
        """The queries of the evaluated split."""
        try:
            return self._open(self.folder).queries(self.val_split)
        except MissingSplitError as error:
            raise ValueError(f"{error}; name the one to evaluate: data.val_split, or split of evaluate") from None

    @property
    def catalog(self) -> ShardSet:
        return self._open(self.folder).catalog()

    @cached_property
    def gallery(self) -> list[ShardSet]:
        """The sets that make up the gallery: the catalog, and distractors if there are any."""
        others = [] if self.distractors is None else [self._open(self.distractors).catalog()]
        return [self.catalog, *others]

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
            validate_distinct_ids({name: self._open(place).catalog() for name, place in self._places.items()}, self.mix)

    @property
    def _places(self) -> dict[str, PathOrUrl]:
        return {MAIN: self.folder, **{name: entry.folder for name, entry in self.mix.items()}}

    def _open(self, place: PathOrUrl) -> PreparedData:
        if str(place) not in self._prepared:
            self._prepared[str(place)] = open_prepared(str(place), self.cache)
        return self._prepared[str(place)]
