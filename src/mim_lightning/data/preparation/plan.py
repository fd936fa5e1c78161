"""The plan of a preparation: which shard sets a manifest becomes, and what each sample contains.

A pure function of the manifest: samples are planned before any image is read, and `RecordReader` adds the images later,
in any process and any order. A training sample has a query and a product, an evaluation sample a query alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import accumulate, islice
from types import MappingProxyType
from typing import Any

import numpy as np

from mim_lightning.data.images.codec import normalize_encoding, sharpness
from mim_lightning.data.images.reader import ImageReader, ImageRef
from mim_lightning.data.manifest.manifest import Manifest, Product, Query
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.manifest.stored_rows import QUERIES, StoredRows, unpack_product, unpack_query
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
        turn: of the query among all that train on the product, by their hashed ids: the images are used equally often,
            in whatever order rows are read.
        category: of the query, that of its first product.
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
    """A set's name in the prepared folder, its number of samples, and a function that yields them in order."""

    name: str
    num_samples: int
    read: Callable[[], Iterator[PlannedSample]]
    first: int = 0  # number of its first sample

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[PlannedSample]:
        return self.read()

    def shards(self, samples_per_shard: int, max_image_side: int) -> Iterator[ShardTask]:
        """Yield the shards of the set."""
        remaining, sizes = self.read(), shard_sizes(self.num_samples, samples_per_shard)
        for shard_idx, (first, size) in enumerate(zip(accumulate(sizes, initial=0), sizes, strict=False)):
            samples = tuple(islice(remaining, size))
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
    rows = manifest.stored()
    splits = sorted(rows.store.run(f"SELECT DISTINCT split FROM {rows.queries}"))
    return [
        plan_catalog(rows),
        *(
            plan_training(rows, split, seed, layout) if split == train_split else plan_evaluation(rows, split)
            for (split,) in splits
        ),
    ]


def plan_catalog(rows: StoredRows) -> PlannedSet:
    """Return the set of the catalog."""
    num_samples = rows.store.number(f"SELECT sum(greatest(1, len(images)))::BIGINT FROM {rows.products}")
    return PlannedSet("catalogue", num_samples, partial(_read_gallery, rows))


def plan_training(
    rows: StoredRows, split: str, seed: int, layout: str, num_before: Mapping[str, int] = MappingProxyType({})
) -> PlannedSet:
    """Return the set of the training split.

    Args:
        num_before: training rows that products have in a former version: the turns of their images go on.
    """
    num = rows.store.number(f"SELECT sum(len(targets))::BIGINT FROM {rows.queries} WHERE split = ?", [split])
    return PlannedSet(f"queries/{split}", num, partial(_read_training, rows, split, num, seed, layout, num_before))


def plan_evaluation(rows: StoredRows, split: str) -> PlannedSet:
    """Return the set of an evaluated split."""
    num_queries = rows.store.number(f"SELECT count(*) FROM {rows.queries} WHERE split = ?", [split])
    return PlannedSet(f"queries/{split}", num_queries, partial(_read_evaluation, rows, split))


def _read_gallery(rows: StoredRows) -> Iterator[PlannedSample]:
    for product in rows.read_products():
        for image in product.images or (None,):
            yield catalog_sample(product, image)


def _read_evaluation(rows: StoredRows, split: str) -> Iterator[PlannedSample]:
    queries = f"SELECT q.*, p.category FROM {rows.queries} q {_first_product(rows)} WHERE q.split = ?"
    for *row, category in rows.store.read_sorted(queries, "position", [split]):
        yield evaluation_sample(unpack_query(row), category)


def _read_training(
    rows: StoredRows, split: str, num_rows: int, seed: int, layout: str, num_before: Mapping[str, int]
) -> Iterator[PlannedSample]:
    """Yield the samples of the training split, with rows or products in random order."""
    store = rows.store
    pairs = store.create("pairs", "position BIGINT, product_id VARCHAR, query_key BIGINT, rank BIGINT")
    ranks = iter(store.shuffled_ranks(num_rows, np.random.default_rng(seed)))
    store.write(
        pairs,
        (
            (position, product_id, hash_id(query_id), int(next(ranks)))
            for position, query_id, targets in store.read(
                f"SELECT position, query_id, targets FROM {rows.queries} WHERE split = ?", [split]
            )
            for product_id in targets
        ),
    )
    # the turn of each query among all that train on one product, so that the product's images are used equally often
    turned = store.select(
        "turned",
        f"""SELECT *, row_number() OVER (PARTITION BY product_id ORDER BY query_key, position) - 1 AS turn,
        min(rank) OVER (PARTITION BY product_id) AS product_rank FROM {pairs}""",
    )
    # a table for each join: several large ones at once need more memory
    own = store.select(
        "own", f"SELECT q.*, t.* EXCLUDE (position) FROM {turned} t JOIN {rows.queries} q USING (position)"
    )
    named = store.select("named", f"SELECT q.*, p.category FROM {own} q {_first_product(rows)}")
    joined = store.select(
        "joined",
        f"""SELECT q.* EXCLUDE (product_id, query_key, turn, category), p.*, turn, q.category
        FROM {named} q JOIN {rows.products} p USING (product_id)""",
    )
    for table in (pairs, turned, own, named):
        store.drop(table)
    num_columns = len(QUERIES.split(", "))
    try:
        for *row, turn, category in store.read(
            f"""SELECT * EXCLUDE (rank, product_rank) FROM {joined}
            ORDER BY {"product_rank, rank" if layout == BY_PRODUCT else "rank"}"""
        ):
            query, product = unpack_query(row[:num_columns]), unpack_product(row[num_columns:])
            yield training_sample(query, product, num_before.get(product.product_id, 0) + turn, category)
    finally:
        store.drop(joined)


def _first_product(rows: StoredRows) -> str:
    """Return the join of queries `q` with the first product `p` of each, whose category is the query's."""
    return f"LEFT JOIN {rows.products} p ON p.product_id = ifnull(q.targets[1], q.reference_ids[1])"
