"""Findings about single pictures: unreadable, truncated, too large, near-empty.

A Manifest and the facts of its pictures come in, findings go out; `check_manifest` calls it. `duplicates` compares
pictures with each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from mim_lightning.data.images.reader import ImageRef
from mim_lightning.data.manifest.manifest import Manifest, Product, Query
from mim_lightning.data.validation.findings import Finding
from mim_lightning.data.validation.image_checks import PictureFacts
from mim_lightning.data.validation.settings import ValidationSettings

Facts = Mapping[ImageRef, PictureFacts]


def refs_of(manifest: Manifest) -> Iterator[ImageRef]:
    """Yield the pictures of products, then of queries, as they stand in the tables."""
    for product in manifest.products.values():
        yield from product.images
    for query in manifest.queries:
        if query.image is not None:
            yield query.image


def find_bad_pictures(manifest: Manifest, facts: Facts, settings: ValidationSettings) -> Iterator[Finding]:
    """Yield unreadable, truncated, too large and near-empty pictures.

    A bad picture drops its row, unless a product has others that are good.
    """
    for product in manifest.products.values():
        found = [one for image in product.images if (one := _judge(product, image, facts[image], settings))]
        num_bad = sum(one.is_bad for one in found)
        for one in found:
            others_remain = num_bad < len(product.images)
            yield replace(one, drops="picture") if one.is_bad and others_remain else one
    for query in manifest.queries:
        if query.image is not None and (one := _judge(query, query.image, facts[query.image], settings)):
            yield one


def _judge(row: Product | Query, image: ImageRef, facts: PictureFacts, settings: ValidationSettings) -> Finding | None:
    kind, reason = facts.kind, f"{image}: {facts.reason}"
    if not kind and facts.one_colour >= settings.blank_image_fraction:
        kind = "near_empty_image"
        reason = f"{image}: {100 * facts.one_colour:.1f} % of the pixels have almost one colour"
    return _finding(kind, row, image, reason, settings) if kind else None


def _finding(kind: str, row: Product | Query, image: ImageRef, reason: str, settings: ValidationSettings) -> Finding:
    table, row_id = ("queries", row.query_id) if isinstance(row, Query) else ("products", row.product_id)
    drops = "row" if settings.is_bad(kind) else ""
    return Finding(kind, table, row.origin, row_id, "image", reason, drops, image)
