"""Which queries are trained on and which are evaluated: the given splits, or product-disjoint ones.

The catalog of a shop keeps growing: product-disjoint numbers show whether a model generalizes to new products.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from mim_lightning.data.manifest.manifest import Manifest, Query
from mim_lightning.data.manifest.row_store import RowChanges, RowWriter
from mim_lightning.data.manifest.stored_rows import QUERIES, StoredRows, named_products, pack_query, unpack_query
from mim_lightning.ids import hash_id


@dataclass(frozen=True)
class GivenSplits:
    """The table's own splits: products of evaluated queries may have been trained on."""

    label: str = ""  # in the names of folder and run

    def apply(self, manifest: Manifest, train_split: str, val_split: str) -> Manifest:
        return manifest


@dataclass(frozen=True)
class ProductDisjointSplits:
    """Fold `fold` of `num_folds` by product: its queries are evaluated, whatever their split was.

    Training keeps the queries without products of the fold. Queries of other splits without such products go to splits
    named `<split>_seen`, so that one run evaluates both seen and unseen products. The catalog stays complete.
    Categories are distributed evenly over the folds.
    """

    num_folds: int
    fold: int
    label: str
    seed: int = 0  # of the folds

    def __post_init__(self) -> None:
        if not (self.num_folds >= 2 and 0 <= self.fold < self.num_folds):
            raise ValueError(
                f"data.splits: fold {self.fold} of {self.num_folds}: give at least 2 folds, and fold from 0"
            )

    def apply(self, manifest: Manifest, train_split: str, val_split: str) -> Manifest:
        rows = manifest.stored()
        held_out = self._held_out(rows)
        store = rows.store
        held = store.select("held", f"FROM ({named_products(rows.queries)}) SEMI JOIN {held_out} USING (product_id)")
        changes = RowChanges(store, QUERIES)
        for row, found in store.read_with(rows.queries, held, "split != ?", [train_split]):
            ids = {product_id for (product_id,) in found}
            changes.change(pack_query(row[0], self._assign(unpack_query(row), ids, train_split, val_split)))
        store.drop(held_out)
        store.drop(held)
        return manifest.with_rows(replace(rows, queries=changes.apply(rows.queries)))

    def holds_out(self, product_id: str) -> bool:
        """Return whether a product that came after the folds were made belongs to the fold: by the hash of its id.

        The folds themselves cannot be extended: one more product would move others to another fold.
        """
        return hash_id(f"{self.seed}/{product_id}") % self.num_folds == self.fold

    def assign(self, manifest: Manifest, held_out: Set[str], train_split: str, val_split: str) -> Manifest:
        """Return the manifest with the split of each query by the products that are held out."""
        rows = manifest.stored()
        changes = RowChanges(rows.store, QUERIES)
        for row in rows.store.read(f"FROM {rows.queries}"):
            query = unpack_query(row)
            assigned = self._assign(query, held_out, train_split, val_split)
            if assigned is not query:
                changes.change(pack_query(row[0], assigned))
        return manifest.with_rows(replace(rows, queries=changes.apply(rows.queries)))

    def _held_out(self, rows: StoredRows) -> str:
        """Return a table of the ids of the products that are held out."""
        store, held_out = rows.store, RowWriter(rows.store, "held_out", "product_id VARCHAR")
        category = f"SELECT ifnull(category, '') AS name, product_id FROM {rows.products}"
        sizes = store.run(f"SELECT name, count(*) FROM ({category}) GROUP BY name ORDER BY name")
        ids = store.read(f"SELECT product_id FROM ({category}) ORDER BY name, product_id")
        rng, num_before = np.random.default_rng(self.seed), 0
        # round robin over products sorted by category, and in random order within one
        for _, size in sizes:
            for rank, row in zip(store.shuffled_ranks(size, rng), islice(ids, size), strict=True):
                if (num_before + int(rank)) % self.num_folds == self.fold:
                    held_out.add(row)
            num_before += size
        held_out.flush()
        return held_out.table

    def _assign(self, query: Query, held_out: Set[str], train_split: str, val_split: str) -> Query:
        targets = [(i, grade) for i, grade in zip(query.target_ids, query.target_grades, strict=True) if i in held_out]
        references = tuple(i for i in query.reference_ids if i in held_out)
        if not targets and not references:
            return query if query.split == train_split else replace(query, split=f"{query.split}_seen")
        # its other products were trained on: they are not what is evaluated
        return replace(
            query,
            split=val_split,
            target_ids=tuple(i for i, _ in targets),
            target_grades=tuple(grade for _, grade in targets),
            reference_ids=references,
        )


Protocol = GivenSplits | ProductDisjointSplits
