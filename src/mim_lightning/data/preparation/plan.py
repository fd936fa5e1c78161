"""From manifest rows to samples: what each will hold, before any picture is read, and then with pictures.

Products and queries come in, PlannedSamples go out, and Records of these; every engine that writes shards makes its
samples here, so that all of them write the same. A training sample holds query and product together, an evaluation
sample a query alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from mim_lightning.data.images.codec import normalize_encoding, sharpness
from mim_lightning.data.images.reader import ImageReader, ImageRef
from mim_lightning.data.manifest.manifest import Product, Query
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.shards.writer import Record
from mim_lightning.fields import DECLARED, FIELDS, PRODUCT_IMAGE, PRODUCT_TEXT, QUERY_IMAGE, QUERY_TEXT
from mim_lightning.ids import id_key

NUM_KEPT = 1_000  # product pictures that a process keeps: some 50 MB


@dataclass(frozen=True)
class PlannedSample:
    """One sample before its pictures are read; pictures by tower name, each with the origin that errors name."""

    facts: Mapping[str, Any]
    pictures: Mapping[str, tuple[ImageRef, str]] = field(default_factory=dict)
    is_measured: bool = False  # tell the sharpness of its query picture


def catalogue_sample(product: Product, image: ImageRef | None) -> PlannedSample:
    """Return one picture of a product, or none, with what only the product's own page shows."""
    facts = {**_product_facts(product), "title": product.title, "metadata": dict(product.metadata)}
    facts |= _declared(product.fields)
    return PlannedSample(facts, _pictures({PRODUCT_IMAGE: (image, product.origin)}))


def training_sample(query: Query, product: Product, turn: int, category: str | None) -> PlannedSample:
    """Return a query with one product that answers it.

    Args:
        turn: which of the product's pictures, see `take_turns`.
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
    pictures = _pictures({PRODUCT_IMAGE: (image, product.origin), QUERY_IMAGE: (query.image, query.origin)})
    return PlannedSample(facts, pictures)


def evaluation_sample(query: Query, category: str | None) -> PlannedSample:
    """Return a query alone, with the segments by which results are told apart."""
    facts = {**_query_facts(query, category), "segments": dict(query.segments)} | _declared(query.fields)
    return PlannedSample(
        facts, _pictures({QUERY_IMAGE: (query.image, query.origin)}), is_measured=query.image is not None
    )


def category_of(query: Query, products: Mapping[str, Product]) -> str | None:
    """Return the category of the first product that answers a query."""
    return products[(*query.asked_ids, *query.shown_ids)[0]].category


def take_turns(query_ids: Sequence[str]) -> dict[str, int]:
    """Return the turn of each query among all that train on one product: its pictures are shown equally often.

    The turns follow the queries' keys, so that they do not depend on the order in which anybody reads the rows.
    """
    return {query_id: turn for turn, query_id in enumerate(sorted(query_ids, key=id_key))}


def rows_id(samples: Sequence[PlannedSample], max_image_side: int) -> str:
    """Return a short text that changes with what a shard is made from."""
    digest = hashlib.blake2b(str(max_image_side).encode(), digest_size=8)
    for sample in samples:
        digest.update(repr(sample).encode())
    return digest.hexdigest()


class PictureError(ValueError):
    """A picture of a row cannot be read; survives the way back from another process."""

    def __init__(self, issue: RowIssue) -> None:
        super().__init__(str(issue))
        self.issue = issue

    def __reduce__(self) -> tuple[Any, ...]:
        return PictureError, (self.issue,)


class RecordReader:
    """Planned samples to records: reads and turns upright what they point at; product pictures of late are kept."""

    def __init__(self, reader: ImageReader, max_image_side: int) -> None:
        self.reader, self.max_image_side = reader, max_image_side
        self._kept = lru_cache(maxsize=NUM_KEPT)(self._read)

    def record(self, sample: PlannedSample) -> Record:
        """Read the pictures of a sample.

        Raises:
            PictureError: one cannot be read.
        """
        images = {tower: self._picture(tower, sample) for tower in sample.pictures}
        facts = dict(sample.facts)
        if sample.is_measured:
            facts["image_sharpness"] = sharpness(images[QUERY_IMAGE])
        return Record(images, facts)

    def _picture(self, tower: str, sample: PlannedSample) -> bytes:
        ref = sample.pictures[tower][0]
        try:
            return self._kept(ref) if tower == PRODUCT_IMAGE else self._read(ref)
        except FileNotFoundError:
            raise PictureError(_issue(tower, sample, f"no such file {ref}")) from None
        except (OSError, ValueError) as error:
            raise PictureError(_issue(tower, sample, f"{ref}: {error}")) from error

    def _read(self, ref: ImageRef) -> bytes:
        return normalize_encoding(self.reader.read(ref), self.max_image_side)


def _issue(tower: str, sample: PlannedSample, reason: str) -> RowIssue:
    field = FIELDS[tower]
    return RowIssue(field.table, sample.pictures[tower][1], field.column, sample.facts[field.id_name], reason)


def _product_facts(product: Product) -> dict[str, Any]:
    return {"product_id": product.product_id, "category": product.category, PRODUCT_TEXT: product.text}


def _query_facts(query: Query, category: str | None) -> dict[str, Any]:
    return {
        "query_id": query.query_id,
        QUERY_TEXT: query.text,
        "asked_ids": query.asked_ids,
        "asked_grades": query.asked_grades,
        "shown_ids": query.shown_ids,
        "category": category,
    }


def _declared(texts: Mapping[str, str]) -> dict[str, Any]:
    return {DECLARED: dict(texts)} if texts else {}


def _pictures(pictures: Mapping[str, tuple[ImageRef | None, str]]) -> dict[str, tuple[ImageRef, str]]:
    return {name: (ref, origin) for name, (ref, origin) in pictures.items() if ref is not None}
