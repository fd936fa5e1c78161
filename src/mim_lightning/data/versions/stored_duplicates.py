"""Query images of an addition that prepared data have already, in another split or in the catalog.

Equal are images that are stored as the same bytes. The byte indexes of the shards tell which stored images have the
size of a new one: only these are read, whatever the number of rows.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Set
from contextlib import suppress
from typing import Any

import numpy as np

from mim_lightning.data.images.codec import normalize_encoding
from mim_lightning.data.images.reader import ImageReader
from mim_lightning.data.manifest.manifest import Query
from mim_lightning.data.preparation.prepared import CATALOG, QUERY_SETS
from mim_lightning.data.validation.findings import Finding
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.versions.addition import Addition
from mim_lightning.data.versions.known_rows import KnownRows
from mim_lightning.fields import PRODUCT_IMAGE, QUERY_IMAGE

Queries = dict[int, dict[bytes, list[Query]]]  # by size and hash of their images


def find_stored_duplicates(
    addition: Addition,
    rows: KnownRows,
    reader: ImageReader,
    settings: ValidationSettings,
    max_image_side: int,
    gone_queries: Set[str],
    gone_products: Set[str],
) -> Iterator[Finding]:
    """Yield the queries whose image another split of the data, or their catalog, has.

    Args:
        reader: of the images of the addition; those that cannot be read are reported elsewhere.
        max_image_side: at which images are stored.
        gone_queries, gone_products: ids that the change replaces or deletes: their former rows do not count.
    """
    by_size = _queries_by_image(addition, reader, max_image_side)
    found: set[tuple[str, str]] = set()
    for set_name in rows.prepared.content() if by_size else ():
        split = set_name.removeprefix(QUERY_SETS) if set_name != CATALOG else None
        for query, facts in _equal_images(by_size, rows, set_name):
            query_id, product_id = facts.get("query_id"), facts.get("product_id")
            if query_id in gone_queries or (split is None and product_id in gone_products):
                continue
            if split == query.split or (split is None and product_id in addition.known):
                continue  # as in one table, and what was found among the rows of the addition
            kind, other = "image_in_two_splits", f"split '{split}'"
            if split is None:
                kind = "photo_in_catalogue" if product_id in query.target_ids else "reference_in_catalogue"
                other = "the catalog"
            if (query.query_id, kind) not in found:
                found.add((query.query_id, kind))
                reason = f"the same image is in {other} of {rows.origin}: {query_id or product_id}"
                drops = settings.drops(kind)
                yield Finding(kind, "queries", query.origin, query.query_id, "image", reason, drops, query.image)


def _queries_by_image(addition: Addition, reader: ImageReader, max_image_side: int) -> Queries:
    found: Queries = defaultdict(lambda: defaultdict(list))
    for query in addition.manifest.queries:
        if query.image is not None:
            with suppress(OSError, ValueError):
                data = normalize_encoding(reader.read(query.image), max_image_side)
                found[len(data)][_hash(data)].append(query)
    return found


def _equal_images(by_size: Queries, rows: KnownRows, set_name: str) -> Iterator[tuple[Query, dict[str, Any]]]:
    """Yield queries with an equal image in a set, and the facts of the sample there."""
    shards = rows.prepared.open_set(set_name)
    name = PRODUCT_IMAGE if set_name == CATALOG else QUERY_IMAGE
    sizes = np.fromiter(by_size, dtype=np.int64)
    for shard_idx in range(len(shards.sizes)):
        first = shards.span(shard_idx)[0]
        candidates = np.flatnonzero(np.isin(shards.member_sizes(shard_idx, name), sizes))
        for number in (candidates + first).tolist():
            members, facts = shards.read_members(number, ("json", name))
            data = members[name]
            for query in by_size[len(data)].get(_hash(data), ()):
                yield query, facts


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
