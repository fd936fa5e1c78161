"""What a change means for each set: which rows it removes, and which samples it adds.

A training sample contains its product, and a query the ids of its products: where a product is replaced or deleted, the
samples that contain it are removed and written again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from mim_lightning.data.manifest.manifest import Manifest, Product
from mim_lightning.data.manifest.stored_rows import StoredRows
from mim_lightning.data.preparation.plan import (
    BY_PRODUCT,
    PlannedSample,
    PlannedSet,
    category_of,
    plan_catalog,
    plan_evaluation,
    plan_training,
    training_sample,
)
from mim_lightning.data.preparation.prepared import CATALOG, QUERY_SETS, ShardSettings
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.versions.known_rows import KnownRows, images_of, numbers_by_key
from mim_lightning.fields import DECLARED, PRODUCT, PRODUCT_IMAGE, PRODUCT_TEXT, side_of
from mim_lightning.ids import hash_id


@dataclass(frozen=True)
class SetChange:
    """The change of one set."""

    name: str  # of the set
    removed: np.ndarray  # (R,) numbers of samples of the former version
    samples: PlannedSet | list[PlannedSample] | StoredSamples  # to add

    def plan(self, first: int) -> PlannedSet:
        """Return the samples as a set of their own, named from a number on."""
        return PlannedSet(self.name, len(self.samples), partial(iter, self.samples), first)


class NewProducts(Mapping[str, Product]):
    """The products that a change writes: their ids are in memory, and those that replace others.

    Args:
        rows: of them alone.
        replaced: ids.
    """

    def __init__(self, rows: StoredRows, replaced: Collection[str]) -> None:
        self.rows = rows
        self._ids = rows.product_ids()
        added = rows.read_products() if replaced else ()
        self._held = {one.product_id: one for one in added if one.product_id in replaced}

    def __getitem__(self, product_id: str) -> Product:
        if product_id not in self._ids:
            raise KeyError(product_id)
        return self._held.get(product_id) or next(self.rows.read_products("product_id = ?", [product_id]))

    def __contains__(self, product_id: object) -> bool:
        return product_id in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


@dataclass(frozen=True)
class ProductChange:
    """The products that a change touches."""

    new: NewProducts  # to write, those that replace others too
    replaced: Collection[str] = ()
    deleted: Collection[str] = ()

    @property
    def touched(self) -> set[str]:
        return {*self.replaced, *self.deleted}


@dataclass(frozen=True)
class ChangePlanner:
    """Plans the changes of all sets.

    Args:
        rows: of the former version.
        manifest: of the addition, with the products of the former version that its queries name.
        products: that change.
        removed_queries: ids of queries that are replaced or deleted.
    """

    rows: KnownRows
    manifest: Manifest
    products: ProductChange
    removed_queries: Collection[str]
    settings: ShardSettings
    _categories: dict[str, Product] = field(default_factory=dict)  # products of the former version, once looked up

    def plan(self) -> list[SetChange]:
        """Return the changes of the sets that change."""
        added = self.manifest.stored()
        splits = [split for (split,) in added.store.run(f"SELECT DISTINCT split FROM {added.queries}")]
        changes = [self._catalog()]
        for split in sorted({*self.rows.splits, *splits}):
            changes.append(self._training(split) if split == self.settings.train_split else self._evaluation(split))
        return [change for change in changes if len(change.removed) or change.samples]

    def _catalog(self) -> SetChange:
        removed = _numbers(self.rows.prepared.catalog(), "keys", self.products.touched)
        return SetChange(CATALOG, removed, plan_catalog(self.products.new.rows))

    def _training(self, split: str) -> SetChange:
        added, name = self.manifest.stored(), f"{QUERY_SETS}{split}"
        removed, kept = self._removed_training_rows()
        if not kept:
            known = added.store.read(f"SELECT DISTINCT unnest(targets) FROM {added.queries} WHERE split = ?", [split])
            before = self.rows.num_training_rows(one for (one,) in known if one not in self.products.new)
            planned = plan_training(added, split, self.settings.seed, self.settings.layout, before)
            return SetChange(name, removed, planned)
        # some are written again among the others: all in memory
        products = {product.product_id: product for product in added.read_products()}
        queries = list(added.read_queries("split = ?", [split]))
        pairs = [(query, product_id) for query in queries for product_id in query.target_ids]
        query_ids: dict[str, list[str]] = defaultdict(list)
        for query, product_id in pairs:
            query_ids[product_id].append(query.query_id)
        for _, facts in kept:
            if facts["product_id"] in self.products.replaced:
                query_ids[facts["product_id"]].append(facts["query_id"])
        # the images of a product of the former version go on in turns
        before = self.rows.num_training_rows(one for one in query_ids if one not in self.products.new)
        turns = {
            product_id: {
                query_id: before.get(product_id, 0) + turn for turn, query_id in enumerate(sorted(ids, key=hash_id))
            }
            for product_id, ids in query_ids.items()
        }
        samples = [
            training_sample(
                query, products[product_id], turns[product_id][query.query_id], category_of(query, products)
            )
            for query, product_id in pairs
        ]
        for number, facts in kept:
            turn = turns.get(facts["product_id"], {}).get(facts["query_id"], 0)
            assert self.rows.train is not None
            samples.append(self._written_again(self.rows.train, number, facts, turn))
        return SetChange(name, removed, self._ordered(samples))

    def _ordered(self, samples: list[PlannedSample]) -> list[PlannedSample]:
        """Return training samples in random order; with the layout by product, those of a product side by side."""
        ordered = [samples[i] for i in np.random.default_rng(self.settings.seed).permutation(len(samples))]
        if self.settings.layout == BY_PRODUCT:
            product_ids = dict.fromkeys(sample.facts["product_id"] for sample in ordered)
            rank = {product_id: rank for rank, product_id in enumerate(product_ids)}
            ordered.sort(key=lambda sample: rank[sample.facts["product_id"]])
        return ordered

    def _removed_training_rows(self) -> tuple[np.ndarray, list[tuple[int, dict[str, Any]]]]:
        """Return the training samples to remove, and those of them that are written again, with changed facts.

        Other queries that show a deleted product go on to name it: that says which products of a batch are no negatives
        of theirs, and it is in no batch. To find them, all rows would have to be read.
        """
        train = self.rows.train
        if train is None:
            return np.zeros(0, dtype=np.int64), []
        removed = _numbers(train, "keys", self.removed_queries)
        touched = np.setdiff1d(_numbers(train, "product_keys", self.products.touched), removed)
        # other products of the same queries: their samples name the touched ones too
        keys = np.unique(train.column("keys")[touched]).tolist() if len(touched) else []
        related = [number for numbers in numbers_by_key(train.column("keys"), keys).values() for number in numbers]
        again: list[tuple[int, dict[str, Any]]] = []
        gone: list[int] = []
        for number in sorted({*related} - {*removed.tolist()}):
            facts = train.read_facts(number)
            changed = self._changed_query(facts)
            is_deleted = facts["product_id"] in self.products.deleted
            if is_deleted or changed is None:
                gone.append(number)
            elif changed != facts or facts["product_id"] in self.products.replaced:
                gone.append(number)
                again.append((number, changed))
        return np.union1d(removed, gone).astype(np.int64), again

    def _evaluation(self, split: str) -> SetChange:
        samples = plan_evaluation(self.manifest.stored(), split)
        if split not in self.rows.splits:
            return SetChange(f"{QUERY_SETS}{split}", np.zeros(0, dtype=np.int64), samples)
        shards = self.rows.queries(split)
        removed = _numbers(shards, "keys", self.removed_queries)
        gone: list[int] = []
        again: list[PlannedSample] = []
        if self.products.touched:
            already = set(removed.tolist())
            for number, facts in enumerate(shards.all_facts()):
                changed = facts if number in already else self._changed_query(facts)
                if changed != facts:
                    gone.append(number)
                    if changed is not None:
                        again.append(_sample(shards, number, changed))
        all_removed = np.union1d(removed, gone).astype(np.int64)
        return SetChange(f"{QUERY_SETS}{split}", all_removed, [*samples, *again] if again else samples)

    def _changed_query(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the facts of a query without deleted products, and with its present category; None: none is left."""
        deleted = self.products.deleted
        targets = [
            (product_id, grade)
            for product_id, grade in zip(facts["asked_ids"], facts["asked_grades"], strict=True)
            if product_id not in deleted
        ]
        references = [product_id for product_id in facts.get("shown_ids", ()) if product_id not in deleted]
        if not targets and not references:
            return None
        changed = {**facts}
        if len(targets) < len(facts["asked_ids"]):
            changed |= {"asked_ids": [one for one, _ in targets], "asked_grades": [grade for _, grade in targets]}
        if facts.get("shown_ids"):
            changed["shown_ids"] = references
        first = (*(one for one, _ in targets), *references)[0]
        former = (*facts["asked_ids"], *facts.get("shown_ids", ()))[0]
        if first in self.products.new:
            changed["category"] = self.products.new[first].category
        elif first != former:
            changed["category"] = self._known_category(first)
        return changed

    def _known_category(self, product_id: str) -> str | None:
        if product_id not in self._categories:
            self._categories.update((product_id, found) for found in self.rows.products([product_id]))
        return self._categories[product_id].category

    def _written_again(self, shards: ShardSet, number: int, facts: Mapping[str, Any], turn: int) -> PlannedSample:
        sample = _sample(shards, number, facts)
        product = self.products.new.get(facts["product_id"])
        if product is None:
            return sample
        own = {name: text for name, text in facts.get(DECLARED, {}).items() if side_of(name) != PRODUCT}
        written = {**facts, PRODUCT_TEXT: product.text, DECLARED: {**product.fields, **own}}
        if not written[DECLARED]:
            del written[DECLARED]
        images = {name: place for name, place in sample.images.items() if name != PRODUCT_IMAGE}
        if product.images:
            images[PRODUCT_IMAGE] = product.images[turn % len(product.images)], product.origin
        return replace(sample, facts=written, images=images)


def _numbers(shards: ShardSet, column: str, ids: Collection[str]) -> np.ndarray:
    """Return the numbers of the samples with one of the ids in a column of hashed ids."""
    found = numbers_by_key(shards.column(column), map(hash_id, ids)) if ids else {}
    numbers = [number for numbers in found.values() for number in numbers]
    return np.array(sorted(numbers), dtype=np.int64)


def _sample(shards: ShardSet, number: int, facts: Mapping[str, Any]) -> PlannedSample:
    """Return a stored sample, to be written again."""
    images = images_of(shards, number)
    return PlannedSample(facts, {name: (image, f"{shards.folder}, sample {number}") for name, image in images.items()})


@dataclass(frozen=True)
class StoredSamples:
    """Stored samples, to be written again as they are; read one by one."""

    shards: ShardSet
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[PlannedSample]:
        for number in map(int, self.numbers):
            yield _sample(self.shards, number, self.shards.read_facts(number))
