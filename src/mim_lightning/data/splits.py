"""Which queries are trained on and which are evaluated: the given splits, or product-disjoint ones.

The catalog of a shop keeps growing: product-disjoint numbers show whether a model generalizes to new products.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace

import numpy as np

from mim_lightning.data.manifest.manifest import Manifest, Product, Query
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
        return self.assign(manifest, self._held_out(manifest.products.values()), train_split, val_split)

    def holds_out(self, product_id: str) -> bool:
        """Return whether a product that came after the folds were made belongs to the fold: by the hash of its id.

        The folds themselves cannot be extended: one more product would move others to another fold.
        """
        return hash_id(f"{self.seed}/{product_id}") % self.num_folds == self.fold

    def assign(self, manifest: Manifest, held_out: Set[str], train_split: str, val_split: str) -> Manifest:
        """Return the manifest with the split of each query by the products that are held out."""
        queries = [self._assign(query, held_out, train_split, val_split) for query in manifest.queries]
        return replace(manifest, queries=queries)

    def _held_out(self, products: Iterable[Product]) -> set[str]:
        by_category: dict[str, list[str]] = defaultdict(list)
        for product in products:
            by_category[product.category or ""].append(product.product_id)
        rng = np.random.default_rng(self.seed)
        # round robin over products sorted by category
        ordered = [
            product_id
            for _, ids in sorted(by_category.items())
            for product_id in rng.permutation(np.array(sorted(ids))).tolist()
        ]
        return {product_id for idx, product_id in enumerate(ordered) if idx % self.num_folds == self.fold}

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
