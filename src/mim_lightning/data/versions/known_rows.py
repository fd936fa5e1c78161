"""Rows of prepared data as the products and queries that they were made of: what a change has to know of them.

Rows are found by hashed id in the columns of the sets; only the rows that are needed are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mim_lightning.data.images.reader import ImageRef, TarMember
from mim_lightning.data.manifest.manifest import Product
from mim_lightning.data.preparation.prepared import PreparedData
from mim_lightning.data.shards.shard_set import KEYS_AT_ONCE, ShardSet
from mim_lightning.fields import DECLARED, IMAGE_FIELDS, PRODUCT_IMAGE, PRODUCT_TEXT
from mim_lightning.ids import hash_id


class KnownRows:
    """The rows of one version of prepared data, by id."""

    def __init__(self, prepared: PreparedData, train_split: str) -> None:
        self.prepared, self.train_split = prepared, train_split
        self.origin = f"{prepared.folder}, version {prepared.version}"
        self.splits = prepared.splits()

    def products(self, product_ids: Iterable[str]) -> Iterator[Product]:
        """Yield those products that the catalog has; their images are members of its shards."""
        wanted = {hash_id(product_id): product_id for product_id in product_ids}
        catalog = self.prepared.catalog()
        for key, numbers in numbers_by_key(catalog.column("keys"), wanted).items():
            facts = catalog.read_facts(numbers[0])
            images = [images_of(catalog, number).get(PRODUCT_IMAGE) for number in numbers]
            yield Product(
                product_id=wanted[key],
                images=tuple(image for image in images if image is not None),
                text=facts.get(PRODUCT_TEXT),
                title=facts.get("title"),
                category=facts.get("category"),
                metadata=facts.get("metadata", {}),
                origin=f"{self.origin}, product '{wanted[key]}'",
                fields=facts.get(DECLARED, {}),
            )

    def product_ids(self, product_ids: Iterable[str]) -> set[str]:
        """Return those ids that the catalog has."""
        return _present(self.prepared.catalog(), product_ids)

    def splits_of_queries(self, query_ids: Iterable[str]) -> dict[str, str]:
        """Return the split of each query that the data have."""
        wanted = list(query_ids)
        return {query_id: split for split in self.splits for query_id in _present(self.queries(split), wanted)}

    def queries(self, split: str) -> ShardSet:
        return self.prepared.queries(split)

    @property
    def train(self) -> ShardSet | None:
        """The training rows, if there are any."""
        return self.queries(self.train_split) if self.train_split in self.splits else None

    def num_training_rows(self, product_ids: Iterable[str], gone: Collection[str] = ()) -> dict[str, int]:
        """Return how many training rows each product has; products without any are left out.

        Args:
            gone: ids of queries whose rows do not count.
        """
        if self.train is None:
            return {}
        wanted = {hash_id(product_id): product_id for product_id in product_ids}
        found = numbers_by_key(self.train.column("product_keys"), wanted)
        if gone:
            keys, gone_keys = self.train.keys, set(map(hash_id, gone))
            found = {key: [one for one in numbers if int(keys[one]) not in gone_keys] for key, numbers in found.items()}
        return {wanted[key]: len(numbers) for key, numbers in found.items() if numbers}

    def splits_by_product(self, product_ids: set[str], gone: Collection[str] = ()) -> dict[str, set[str]]:
        """Return the splits, other than the training split, in which each product is a target or a reference.

        Args:
            gone: ids of queries that do not count.
        """
        found: dict[str, set[str]] = defaultdict(set)
        for split in self.splits if product_ids else ():
            if split == self.train_split:
                continue
            for facts in self.queries(split).all_facts():
                named = product_ids.intersection((*facts.get("asked_ids", ()), *facts.get("shown_ids", ())))
                for product_id in named if facts.get("query_id") not in gone else ():
                    found[product_id].add(split)
        return dict(found)


def numbers_by_key(column_N: np.ndarray, keys: Mapping[int, Any] | Iterable[int]) -> dict[int, list[int]]:
    """Return the numbers of all rows that have each key in a column, ascending; keys that no row has are left out."""
    wanted, found = np.unique(np.fromiter(keys, dtype=np.int64)), defaultdict(list)
    for start in range(0, len(column_N) if len(wanted) else 0, KEYS_AT_ONCE):
        part = np.asarray(column_N[start : start + KEYS_AT_ONCE])
        for position in np.flatnonzero(np.isin(part, wanted)).tolist():
            found[int(part[position])].append(start + position)
    return dict(found)


def images_of(shards: ShardSet, number: int) -> dict[str, ImageRef]:
    """Return the images of a sample by field, as members of its shard."""
    path, members = shards.locate(number)
    return {
        name: TarMember(path, f"sample {number}, {name}", *place)
        for name, place in members.items()
        if name in IMAGE_FIELDS
    }


def _present(shards: ShardSet, ids: Iterable[str]) -> set[str]:
    wanted = {hash_id(one): one for one in ids}
    return {wanted[key] for key in numbers_by_key(shards.column("keys"), wanted)}
