"""The plan of a preparation: which shard sets a manifest becomes, and what each sample contains.

A pure function of the manifest: samples are planned before any image is read, and `RecordReader` adds the images later,
in any process and any order. A training sample has a query and a product, an evaluation sample a query alone.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from mim_lightning.data.images.codec import normalize_encoding, sharpness
from mim_lightning.data.images.reader import ImageReader, ImageRef
from mim_lightning.data.manifest.manifest import Manifest, Product, Query
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.shards.shard_writer import Record, shard_sizes
from mim_lightning.fields import DECLARED, FIELDS, PRODUCT_IMAGE, PRODUCT_TEXT, QUERY_IMAGE, QUERY_TEXT
from mim_lightning.ids import hash_id

SHUFFLED, BY_PRODUCT = "shuffled", "by_product"  # order of training rows in the shards
MAX_CACHED_IMAGES = 1_000  # of products, a process: some 50 MB


@dataclass(frozen=True)
class PlannedSample:
    """One sample before its images are read."""

    facts: Mapping[str, Any]
    images: Mapping[str, tuple[ImageRef, str]] = field(default_factory=dict)  # by field, with the origin for errors
    is_measured: bool = False  # add the sharpness of its query image


def catalog_sample(product: Product, image: ImageRef | None) -> PlannedSample:
    """Return one image of a product, or none, with its title and metadata."""
    facts = {**_product_facts(product), "title": product.title, "metadata": dict(product.metadata)}
    facts |= _declared(product.fields)
    return PlannedSample(facts, _present({PRODUCT_IMAGE: (image, product.origin)}))


def training_sample(query: Query, product: Product, turn: int, category: str | None) -> PlannedSample:
    """Return a query with one relevant product.

    Args:
        turn: which of the product's images, see `rotate_images`.
        category: of the query, see `category_of`.
    """
    image = product.images[turn % len(product.images)] if product.images else None
    facts = {**_product_facts(product), **_query_facts(query, category)}
    if query.segments:
        facts["segments"] = dict(query.segments)
    weight = query.product_weights.get(product.product_id, query.weight)
    if weight != 1:
        facts["weight"] = weight
    facts |= _declared({**product.fields, **query.fields})
    images = _present({PRODUCT_IMAGE: (image, product.origin), QUERY_IMAGE: (query.image, query.origin)})
    return PlannedSample(facts, images)


def evaluation_sample(query: Query, category: str | None) -> PlannedSample:
    """Return a query alone, with its segments."""
    facts = {**_query_facts(query, category), "segments": dict(query.segments)} | _declared(query.fields)
    return PlannedSample(
        facts, _present({QUERY_IMAGE: (query.image, query.origin)}), is_measured=query.image is not None
    )


def category_of(query: Query, products: Mapping[str, Product]) -> str | None:
    """Return the category of the first relevant product of a query."""
    return products[(*query.target_ids, *query.reference_ids)[0]].category


def rotate_images(query_ids: Sequence[str]) -> dict[str, int]:
    """Return the turn of each query among all that train on one product, so that its images are used equally often.

    Turns follow the hashed ids, so they do not depend on the order in which rows are read.
    """
    return {query_id: turn for turn, query_id in enumerate(sorted(query_ids, key=hash_id))}


def hash_samples(samples: Sequence[PlannedSample], max_image_side: int) -> str:
    """Return a short hash of what a shard is made from."""
    digest = hashlib.blake2b(str(max_image_side).encode(), digest_size=8)
    for sample in samples:
        digest.update(repr(sample).encode())
    return digest.hexdigest()


class RowImageError(ValueError):
    """An image of a row cannot be read; can be pickled."""

    def __init__(self, issue: RowIssue) -> None:
        super().__init__(str(issue))
        self.issue = issue

    def __reduce__(self) -> tuple[Any, ...]:
        return RowImageError, (self.issue,)


class RecordReader:
    """Turns planned samples into records: reads their images and rotates them upright; caches product images."""

    def __init__(self, reader: ImageReader, max_image_side: int) -> None:
        self.reader, self.max_image_side = reader, max_image_side
        self._cached = lru_cache(maxsize=MAX_CACHED_IMAGES)(self._read)

    def record(self, sample: PlannedSample) -> Record:
        """Read the images of a sample.

        Raises:
            RowImageError: one cannot be read.
        """
        images = {name: self._image(name, sample) for name in sample.images}
        facts = dict(sample.facts)
        if sample.is_measured:
            facts["image_sharpness"] = sharpness(images[QUERY_IMAGE])
        return Record(images, facts)

    def _image(self, name: str, sample: PlannedSample) -> bytes:
        ref = sample.images[name][0]
        try:
            return self._cached(ref) if name == PRODUCT_IMAGE else self._read(ref)
        except FileNotFoundError:
            raise RowImageError(_issue(name, sample, f"no such file {ref}")) from None
        except (OSError, ValueError) as error:
            raise RowImageError(_issue(name, sample, f"{ref}: {error}")) from error

    def _read(self, ref: ImageRef) -> bytes:
        return normalize_encoding(self.reader.read(ref), self.max_image_side)


def _issue(name: str, sample: PlannedSample, reason: str) -> RowIssue:
    field = FIELDS[name]
    return RowIssue(field.table, sample.images[name][1], field.column, sample.facts[field.id_name], reason)


def _product_facts(product: Product) -> dict[str, Any]:
    return {"product_id": product.product_id, "category": product.category, PRODUCT_TEXT: product.text}


def _query_facts(query: Query, category: str | None) -> dict[str, Any]:
    return {
        "query_id": query.query_id,
        QUERY_TEXT: query.text,
        "asked_ids": query.target_ids,
        "asked_grades": query.target_grades,
        "shown_ids": query.reference_ids,
        "category": category,
    }


def _declared(texts: Mapping[str, str]) -> dict[str, Any]:
    return {DECLARED: dict(texts)} if texts else {}


def _present(images: Mapping[str, tuple[ImageRef | None, str]]) -> dict[str, tuple[ImageRef, str]]:
    return {name: (ref, origin) for name, (ref, origin) in images.items() if ref is not None}


@dataclass(frozen=True)
class PlannedSet:
    """A set's name in the prepared folder, its rows in order, and the function that makes their samples."""

    name: str
    items: Sequence[Any]
    make: Callable[[Any], PlannedSample]
    first: int = 0  # number of its first sample

    def shards(self, samples_per_shard: int, max_image_side: int) -> Iterator[ShardTask]:
        """Yield the shards of the set."""
        sizes = shard_sizes(len(self.items), samples_per_shard)
        for shard_idx, (first, size) in enumerate(zip(accumulate(sizes, initial=0), sizes, strict=False)):
            samples = tuple(map(self.make, self.items[first : first + size]))
            first += self.first
            yield ShardTask(self.name, shard_idx, first, samples, hash_samples(samples, max_image_side))


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written."""

    set_name: str
    shard_idx: int
    first: int  # number of its first sample in the set
    samples: tuple[PlannedSample, ...]
    content_id: str  # hash of what it is made from


def plan_sets(manifest: Manifest, train_split: str, seed: int, layout: str = SHUFFLED) -> list[PlannedSet]:
    """Return the set of the catalog, and one for each split.

    Args:
        seed: of the order of training rows.
        layout: SHUFFLED, or BY_PRODUCT: the training rows of a product are adjacent.

    Raises:
        ValueError: there is a table of queries, and none is valid.
    """
    if manifest.queries_path is not None and not manifest.queries:
        raise ValueError(f"{manifest.queries_path}: no query is valid")
    products = manifest.products
    gallery = [(product, image) for product in products.values() for image in product.images or (None,)]
    sets = [PlannedSet("catalogue", gallery, lambda item: catalog_sample(*item))]
    for split in sorted({query.split for query in manifest.queries}):
        name, queries = f"queries/{split}", manifest.split(split)
        if split == train_split:
            sets.append(PlannedSet(name, _training_items(queries, seed, layout), _make_training(manifest)))
        else:
            sets.append(PlannedSet(name, queries, lambda query: evaluation_sample(query, category_of(query, products))))
    return sets


def _training_items(queries: Sequence[Query], seed: int, layout: str) -> list[tuple[Query, str, int]]:
    """Return query, product and turn of each training row, with rows or products in random order."""
    query_ids: dict[str, list[str]] = defaultdict(list)
    rows = [(query, product_id) for query in queries for product_id in query.target_ids]
    for query, product_id in rows:
        query_ids[product_id].append(query.query_id)
    turns = {product_id: rotate_images(ids) for product_id, ids in query_ids.items()}
    shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    if layout == BY_PRODUCT:
        rank = {product_id: rank for rank, product_id in enumerate(dict.fromkeys(row[1] for row in shuffled))}
        shuffled.sort(key=lambda row: rank[row[1]])
    return [(query, product_id, turns[product_id][query.query_id]) for query, product_id in shuffled]


def _make_training(manifest: Manifest) -> Callable[[tuple[Query, str, int]], PlannedSample]:
    def make(item: tuple[Query, str, int]) -> PlannedSample:
        query, product_id, turn = item
        return training_sample(query, manifest.products[product_id], turn, category_of(query, manifest.products))

    return make
