"""Which shard sets a manifest becomes, and which rows stand in which shard, as a pure function of the manifest.

A Manifest and ShardSettings come in, PlannedSets go out, cut into tasks of one shard each: `processes` writes them,
in any number of processes and any order, and a second attempt finds out what the first one finished.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from mim_lightning.data.manifest.manifest import Manifest, Query
from mim_lightning.data.preparation.plan import (
    PlannedSample,
    catalogue_sample,
    category_of,
    evaluation_sample,
    rows_id,
    take_turns,
    training_sample,
)
from mim_lightning.data.shards.writer import shard_sizes

SHUFFLED, BY_PRODUCT = "shuffled", "by_product"  # how training rows lie in their shards


@dataclass(frozen=True)
class PlannedSet:
    """A set's name in the prepared folder, and its rows in order; they are made when they are wanted."""

    name: str
    items: Sequence[Any]
    make: Callable[[Any], PlannedSample]

    def shards(self, samples_per_shard: int, max_image_side: int) -> Iterator[ShardTask]:
        """Yield what is to be written, shard by shard."""
        sizes = shard_sizes(len(self.items), samples_per_shard)
        for shard_idx, (first, size) in enumerate(zip(accumulate(sizes, initial=0), sizes, strict=False)):
            samples = tuple(map(self.make, self.items[first : first + size]))
            yield ShardTask(self.name, shard_idx, first, samples, rows_id(samples, max_image_side))


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written: its set and number, the number of its first sample, and its samples in order."""

    set_name: str
    shard_idx: int
    first: int
    samples: tuple[PlannedSample, ...]
    rows_id: str  # of what it is made from


def plan_sets(manifest: Manifest, train_split: str, seed: int, layout: str = SHUFFLED) -> list[PlannedSet]:
    """Return the catalogue, and a set a split.

    Args:
        seed: of the order of training rows.
        layout: SHUFFLED, or BY_PRODUCT: the training rows of a product stand side by side.

    Raises:
        ValueError: there is a table of queries without any.
    """
    if manifest.queries_path is not None and not manifest.queries:
        raise ValueError(f"{manifest.queries_path}: not one query can be used")
    products = manifest.products
    gallery = [(product, image) for product in products.values() for image in product.images or (None,)]
    sets = [PlannedSet("catalogue", gallery, lambda item: catalogue_sample(*item))]
    for split in sorted({query.split for query in manifest.queries}):
        name, queries = f"queries/{split}", manifest.split(split)
        if split == train_split:
            sets.append(PlannedSet(name, _training_items(queries, seed, layout), _make_training(manifest)))
        else:
            sets.append(PlannedSet(name, queries, lambda query: evaluation_sample(query, category_of(query, products))))
    return sets


def _training_items(queries: Sequence[Query], seed: int, layout: str) -> list[tuple[Query, str, int]]:
    """Return query, product and turn of each training row, in an order that mixes rows, or products."""
    asking: dict[str, list[str]] = defaultdict(list)
    for query in queries:
        for product_id in query.asked_ids:
            asking[product_id].append(query.query_id)
    turns = {product_id: take_turns(query_ids) for product_id, query_ids in asking.items()}
    rows = [(query, product_id) for query in queries for product_id in query.asked_ids]
    mixed = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    if layout == BY_PRODUCT:
        place = {product_id: place for place, product_id in enumerate(dict.fromkeys(row[1] for row in mixed))}
        mixed.sort(key=lambda row: place[row[1]])
    return [(query, product_id, turns[product_id][query.query_id]) for query, product_id in mixed]


def _make_training(manifest: Manifest) -> Callable[[tuple[Query, str, int]], PlannedSample]:
    def make(item: tuple[Query, str, int]) -> PlannedSample:
        query, product_id, turn = item
        return training_sample(query, manifest.products[product_id], turn, category_of(query, manifest.products))

    return make
