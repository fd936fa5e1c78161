"""Images of an addition that prepared data have already, in another split or in the catalog, or nearly so.

They are compared as in a preparation of all rows, by the perceptual hashes that lie beside the data. Of two rows the
new one is reported, which can be dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from mim_lightning.data.images.reader import ImageReader, ImageRef
from mim_lightning.data.manifest.row_store import RowStore
from mim_lightning.data.manifest.stored_rows import StoredRows, image_key, image_of
from mim_lightning.data.preparation.prepared import CATALOG, QUERY_SETS
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.validation.duplicates import HASH_BITS, MAX_COMPARED, are_colors_close, write_near
from mim_lightning.data.validation.findings import Finding
from mim_lightning.data.validation.image_hashes import (
    find_hash_files,
    hashes_path,
    images_query,
    read_hashes,
    write_hashes,
)
from mim_lightning.data.validation.image_scan import scan_images
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.versions.known_rows import KnownRows, images_of
from mim_lightning.fields import PRODUCT_IMAGE, QUERY_IMAGE
from mim_lightning.ids import hash_id

GROUPS_AT_ONCE = 10_000  # new rows whose equals are looked up together
ROWS_AT_ONCE = 1_000_000  # stored rows of which is looked up whether they are still there


@dataclass(frozen=True)
class NewImages:
    """The images of an addition.

    Attributes:
        rows: of the addition, in a store, with the products of the data that its queries name.
        images: the table of their properties there, see `scan_images`.
        known: ids of the products of the data among them.
        gone_queries, gone_products: ids that the change replaces or deletes: their former rows do not count.
        in_catalog: ids of the new queries whose image was found in the catalog among the rows of the addition.
    """

    rows: StoredRows
    images: str
    known: Set[str]
    gone_queries: Set[str]
    gone_products: Set[str]
    in_catalog: Set[str] = frozenset()

    def query_of_new(self, rows: StoredRows) -> str:
        """Return the query for the images of those rows, of these or some of them, that are not of the data."""
        own = rows.store.create("known", "id VARCHAR")
        rows.store.write(own, ((product_id,) for product_id in self.known))
        return f"FROM ({images_query(rows, self.images)}) WHERE NOT (split IS NULL AND id IN (FROM {own}))"


def find_stored_duplicates(
    new: NewImages, known: KnownRows, stored: str, settings: ValidationSettings
) -> Iterator[Finding]:
    """Yield new queries whose image another split of the data or the catalog has, and new products with one of a query.

    Args:
        known: the rows of the data.
        stored: the table of their images, see `stored_images`.
    """
    store = new.rows.store
    fraction = [settings.blank_image_fraction]
    with_hash = "WHERE hash IS NOT NULL AND uniform_fraction < ?"
    ours = store.select("ours", f"FROM ({new.query_of_new(new.rows)}) {with_hash}", fraction)
    gone = store.create("gone", "is_product BOOLEAN, id VARCHAR")
    store.write(gone, ((False, query_id) for query_id in new.gone_queries))
    store.write(gone, ((True, product_id) for product_id in (*new.gone_products, *new.known)))
    theirs = store.select(
        "theirs",
        f"""FROM {stored} s {with_hash}
        AND NOT EXISTS (FROM {gone} g WHERE g.id = s.id AND g.is_product = (s.split IS NULL))""",
        fraction,
    )
    hashes = f"SELECT hash FROM {ours} GROUP BY hash ORDER BY min(position), hash"
    near = write_near(store, hashes, f"SELECT DISTINCT hash FROM {theirs} ORDER BY hash", settings.max_hash_distance)
    finder = _Finder(known, settings, new.in_catalog)
    others = store.select("others", f"FROM {theirs} SEMI JOIN (SELECT other AS hash FROM {near}) USING (hash)")
    there = store.create("there", "split VARCHAR, id VARCHAR")
    rows = store.read(f"SELECT DISTINCT split, id FROM {others}")
    while some := set(islice(rows, ROWS_AT_ONCE)):
        store.write(there, finder.numbers(some))
    pairs = _near_rows(store, ours, others, there, near, new.rows)
    groups = (list(group) for _, group in groupby(pairs, key=lambda pair: (pair[0] is None, pair[1], pair[5])))
    while block := list(islice(groups, GROUPS_AT_ONCE)):
        yield from finder.find(block)


def _near_rows(
    store: RowStore, ours: str, theirs: str, there: str, near: str, rows: StoredRows
) -> Iterator[tuple[Any, ...]]:
    """Yield each new image with each stored one whose hash is close, those of a row and split together, closest first.

    Of a stored hash, the images of MAX_COMPARED rows of a split are compared, of those in `there`.

    Of each pair: split, position, id, image key and origin of the new row; split and id of the other; whether it is a
    target of the new row; distance of the hashes, and the colors of both.
    """
    return store.read(
        f"""
        WITH others AS (
            SELECT *, dense_rank() OVER (PARTITION BY hash, split ORDER BY file DESC, id) AS number
            FROM {theirs} t
            WHERE EXISTS (FROM {there} h WHERE h.id = t.id AND h.split IS NOT DISTINCT FROM t.split)
        )
        SELECT l.split, l.position, l.id, l.key, ifnull(query.origin, product.origin), r.split, r.id,
            ifnull(r.split IS NULL AND list_contains(query.targets, r.id), false) AS is_target, distance,
            l.colors, r.colors
        FROM {near} n JOIN {ours} l USING (hash)
        JOIN others r ON r.hash = n.other AND r.number <= {MAX_COMPARED}
        LEFT JOIN {rows.queries} query ON l.split IS NOT NULL AND query.position = l.position
        LEFT JOIN {rows.products} product ON l.split IS NULL AND product.position = l.position
        WHERE l.split IS DISTINCT FROM r.split
        ORDER BY l.split IS NULL, l.position, r.split IS NULL, r.split, is_target DESC, distance, r.id, r.idx, l.idx
        """
    )


@dataclass(frozen=True)
class _Finder:
    """Turns pairs of images into findings, if the other row is still in the data."""

    known: KnownRows
    settings: ValidationSettings
    in_catalog: Set[str]

    def find(self, groups: list[list[tuple[Any, ...]]]) -> Iterator[Finding]:
        equal = [[pair for pair in group if are_colors_close(*pair[-2:])] for group in groups]
        numbers = self.numbers({(pair[5], pair[6]) for group in equal for pair in group})
        for group in equal:
            there = [pair for pair in group if (pair[5], pair[6]) in numbers]
            if not there:
                continue
            split, _, row_id, key, origin, other, other_id, is_target, distance, *_ = there[0]
            if split is not None and other is None and row_id in self.in_catalog:
                continue
            shards, number = self._set(other), numbers[other, other_id]
            if split is None:  # a new product with the image of a query
                asked = [(pair, self._set(pair[5]).read_facts(numbers[pair[5], pair[6]])) for pair in there]
                target = next((pair for pair, facts in asked if row_id in facts.get("asked_ids", ())), None)
                is_target = target is not None
                other_id, distance = (target or there[0])[6], (target or there[0])[8]
                number = numbers[other, other_id]
            kind = "image_in_two_splits"
            if split is None or other is None:
                kind = "photo_in_catalogue" if is_target else "reference_in_catalogue"
            near = "the same image" if not distance else f"the same image but for {distance} of {HASH_BITS} bits"
            where = "the catalog" if other is None else f"split '{other}'"
            yield Finding(
                kind=kind,
                table="products" if split is None else "queries",
                origin=origin,
                row_id=row_id,
                column="image",
                reason=f"{near} is in {where} of {self.known.origin}: {other_id}",
                drops=self.settings.drops(kind),
                image=image_of(key),
                other_origin=f"{self.known.origin}, {'product' if other is None else 'query'} '{other_id}'",
                other_image=images_of(shards, number).get(PRODUCT_IMAGE if other is None else QUERY_IMAGE),
            )

    def _set(self, split: str | None) -> ShardSet:
        return self.known.prepared.open_set(CATALOG if split is None else f"{QUERY_SETS}{split}")

    def numbers(self, rows: Set[tuple[str | None, str]]) -> dict[tuple[str | None, str], int]:
        """Return the number of a sample of each row that the data still have."""
        found: dict[tuple[str | None, str], int] = {}
        for split in {split for split, _ in rows}:
            if split is not None and split not in self.known.splits:
                continue
            keys = {hash_id(row_id): row_id for name, row_id in rows if name == split}
            numbers = self._set(split).find([*keys])
            found |= {(split, keys[key]): number for key, number in numbers.items()}
        return found


def stored_images(known: KnownRows, settings: ValidationSettings, store: RowStore, scan_path: Path) -> str:
    """Return a table of the hashes of the images of prepared data, see `read_hashes`.

    Data that were prepared before there were such files, or by Ray: their images are read, once.

    Args:
        scan_path: see `scan_images`.
    """
    folder, version = known.prepared.folder, known.prepared.version
    assert isinstance(folder, Path)
    files = find_hash_files(folder, version)
    if not files:
        print(f"{folder}: the hashes of its images are not known yet; they are computed once", flush=True)
        files = [hashes_path(folder, version)]
        write_hashes(files[0], store, _hash_stored(known, settings, store, scan_path))
    return read_hashes(store, files)


def _hash_stored(known: KnownRows, settings: ValidationSettings, store: RowStore, scan_path: Path) -> str:
    table = store.create("placed", "split VARCHAR, id VARCHAR, idx BIGINT, key VARCHAR")
    store.write(table, _placed_images(known))
    keys = store.read(f"SELECT key FROM {table} WHERE key IS NOT NULL")
    refs: Iterator[ImageRef] = (image_of(key) for (key,) in keys)
    images = scan_images(refs, ImageReader().read, scan_path, settings.num_processes, store).table
    return f"""SELECT split, id, idx, perceptual_hash AS hash, grid_colors AS colors, uniform_fraction
        FROM {table} LEFT JOIN (FROM {images} WHERE kind = '') USING (key)"""


def _placed_images(known: KnownRows) -> Iterator[tuple[str | None, str, int, str | None]]:
    """Yield split, id, number of the image and its key for every sample."""
    for set_name in known.prepared.content():
        split = None if set_name == CATALOG else set_name.removeprefix(QUERY_SETS)
        shards, name = known.prepared.open_set(set_name), PRODUCT_IMAGE if split is None else QUERY_IMAGE
        for number, facts in enumerate(shards.all_facts()):
            image = images_of(shards, number).get(name)
            row_id = facts.get("query_id") if split is not None else facts["product_id"]
            yield split, str(row_id), number, None if image is None else image_key(image)
