"""Which queries may be trained on and which are evaluated: as the table says, or product-disjoint.

A Manifest comes in, a Manifest with other splits goes out; `prepared` applies the protocol before it writes. A
shop's catalogue is open, so the product-disjoint numbers tell whether a model learnt concepts or products.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace

import numpy as np

from mim_lightning.data.manifest.manifest import Manifest, Product, Query


@dataclass(frozen=True)
class GivenSplits:
    """The table's own splits: products of evaluated queries may have been trained on."""

    label: str = ""  # what folder and run are called after

    def apply(self, manifest: Manifest, train_split: str, val_split: str) -> Manifest:
        return manifest


@dataclass(frozen=True)
class ProductDisjointSplits:
    """Fold `fold` of `num_folds` by product: its queries are evaluated, whatever split they stood in.

    Training keeps the queries that have nothing to do with products of the fold. What remains of the other splits
    goes to splits with `_seen` behind their names: nothing of it was held out, and the same run answers both
    questions. The catalogue stays whole. Categories are spread evenly over the folds.
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
        held_out = self._held_out(manifest.products.values())
        queries = [self._place(query, held_out, train_split, val_split) for query in manifest.queries]
        return replace(manifest, queries=queries)

    def _held_out(self, products: Iterable[Product]) -> set[str]:
        by_category: dict[str, list[str]] = defaultdict(list)
        for product in products:
            by_category[product.category or ""].append(product.product_id)
        rng = np.random.default_rng(self.seed)
        # categories one after the other, dealt to the folds like cards
        dealt = [
            product_id
            for _, ids in sorted(by_category.items())
            for product_id in rng.permutation(np.array(sorted(ids))).tolist()
        ]
        return {product_id for place, product_id in enumerate(dealt) if place % self.num_folds == self.fold}

    def _place(self, query: Query, held_out: Set[str], train_split: str, val_split: str) -> Query:
        asked = [(i, grade) for i, grade in zip(query.asked_ids, query.asked_grades, strict=True) if i in held_out]
        shown = tuple(i for i in query.shown_ids if i in held_out)
        if not asked and not shown:
            return query if query.split == train_split else replace(query, split=f"{query.split}_seen")
        # what it is asked for or shows besides was trained on, and would answer another question
        return replace(
            query,
            split=val_split,
            asked_ids=tuple(i for i, _ in asked),
            asked_grades=tuple(grade for _, grade in asked),
            shown_ids=shown,
        )


Protocol = GivenSplits | ProductDisjointSplits
