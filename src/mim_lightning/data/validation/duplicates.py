"""Finds equal images in two splits, or in a split and the catalog, also if they were encoded again or resized.

Images are equal if their perceptual hashes are close, and so are their colors.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, count, groupby, islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mim_lightning.data.manifest.row_store import RowStore
from mim_lightning.data.manifest.stored_rows import StoredRows, image_of
from mim_lightning.data.validation.findings import Finding
from mim_lightning.data.validation.settings import ValidationSettings

HASH_BITS = 64
MAX_COLOR_DISTANCE = 12  # levels of 255: color variants of a product have the same gray image
MAX_CANDIDATES = 2_000_000  # pairs compared at once, of about 50 bytes each
MAX_HASHES = 1_000_000  # of each side, compared at once
MAX_COMPARED = 50  # rows of one hash whose colors are compared
Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]


def find_duplicates(rows: StoredRows, images: str, settings: ValidationSettings, train_split: str) -> Iterator[Finding]:
    """Yield the query images that are in another split or in the catalog too.

    Of two splits the row of the training split is reported, which can be dropped without changing the evaluation; else
    that of the first split by name. Invalid and blank images are not compared.

    Args:
        images: the table of their properties in the store, see `scan_images`.
    """
    compared = rows.store.select(
        "compared",
        f"""SELECT split, position, idx, key, perceptual_hash AS hash, grid_colors AS colors FROM (
            SELECT split, position, 0 AS idx, image AS key FROM {rows.queries} WHERE image IS NOT NULL
            UNION ALL SELECT NULL, position, generate_subscripts(images, 1), unnest(images) FROM {rows.products}
        ) JOIN {images} USING (key) WHERE kind = '' AND uniform_fraction < ?""",
        [settings.blank_image_fraction],
    )
    splits = [name for (name,) in rows.store.run(f"SELECT DISTINCT split FROM {compared}")]
    # None, the catalog, is last
    order = sorted(splits, key=lambda name: (name is None, name != train_split, name or ""))
    for split, other in combinations(order, 2):
        pairs = _equal_images(rows, compared, (split, other), settings.max_hash_distance)
        for _, candidates in groupby(pairs, key=lambda pair: pair[0]):
            equal = [pair for pair in candidates if are_colors_close(*pair[-2:])]
            if not equal:
                continue
            # a target of the query is preferred to a closer image
            _, origin, row_id, image, twin_origin, twin_image, is_target, distance, *_ = next(
                (pair for pair in equal if pair[6]), equal[0]
            )
            kind = "image_in_two_splits"
            if other is None:
                kind = "photo_in_catalogue" if is_target else "reference_in_catalogue"
            near = "the same image" if not distance else f"the same image but for {distance} of {HASH_BITS} bits"
            yield Finding(
                kind=kind,
                table="queries",
                origin=origin,
                row_id=row_id,
                column="image",
                reason=f"{near} is in {f'split {other!r}' if other else 'the catalog'}: {twin_origin}",
                drops=settings.drops(kind),
                image=image_of(image),
                other_origin=twin_origin,
                other_image=image_of(twin_image),
            )


def _equal_images(
    rows: StoredRows, compared: str, splits: tuple[str | None, str | None], max_distance: int
) -> Iterator[tuple[Any, ...]]:
    """Yield each row of the first split with each row of the second whose image's hash is close, the closest first.

    Of each pair: position, origin, id and image of the row, origin and image of the other, whether it is a target of
    the row, the distance of the hashes in bits, and the colors of both.
    """
    store, other = rows.store, splits[1]
    sides = [
        store.select("side", f"SELECT * EXCLUDE (split) FROM {compared} WHERE split IS NOT DISTINCT FROM ?", [name])
        for name in splits
    ]
    left, right = (f"SELECT hash FROM {side} GROUP BY hash ORDER BY min(position), hash" for side in sides)
    near = write_near(store, left, right, max_distance)
    twin_id = "NULL" if other is not None else "twin.product_id"
    return store.read(
        f"""
        WITH hashes AS (SELECT hash, min(number) AS place FROM {near} GROUP BY hash),
        others AS (
            SELECT *, row_number() OVER (PARTITION BY hash ORDER BY position, idx) AS number
            FROM {sides[1]} SEMI JOIN (SELECT other AS hash FROM {near}) USING (hash)
        )
        SELECT query.position, query.origin, query.query_id, l.key, twin.origin, r.key,
            ifnull(list_contains(query.targets, {twin_id}), false), distance, l.colors, r.colors
        FROM {near} n JOIN hashes USING (hash)
        JOIN {sides[0]} l USING (hash) JOIN others r ON r.hash = n.other AND r.number <= {MAX_COMPARED}
        JOIN {rows.queries} query ON query.position = l.position
        JOIN {rows.products if other is None else rows.queries} twin ON twin.position = r.position
        ORDER BY place, l.position, distance, n.other, r.position, r.idx
        """
    )


def write_near(store: RowStore, left: str, right: str, max_distance: int) -> str:
    """Return a table of all pairs of hashes that are close: number of the pair, hash, other, distance in bits.

    Args:
        left, right: queries for distinct hashes.
        max_distance: bits.
    """
    near = store.create("near", "number BIGINT, hash UBIGINT, other UBIGINT, distance BIGINT")
    numbers = count()
    for lefts in _blocks(store, left):
        for rights in _blocks(store, right):
            found = near_equal(lefts, rights, max_distance)
            store.write(near, ((next(numbers), int(lefts[i]), int(rights[j]), distance) for i, j, distance in found))
    return near


def _blocks(store: RowStore, query: str) -> Iterator[Hashes]:
    hashes = (row[0] for row in store.read(query))
    while len(block := np.fromiter(islice(hashes, MAX_HASHES), dtype=np.uint64)):
        yield block


def are_colors_close(left: str, right: str) -> bool:
    """Compare the colors of two images, as their properties have them."""
    colors = (np.frombuffer(bytes.fromhex(text), dtype=np.uint8).astype(np.int16) for text in (left, right))
    return bool(np.abs(next(colors) - next(colors)).max() <= MAX_COLOR_DISTANCE)


def near_equal(left_N: Hashes, right_M: Hashes, max_distance: int) -> Iterator[tuple[int, int, int]]:
    """Yield (left position, right position, distance) of all pairs at most `max_distance` bits apart, each once.

    Exact, by multi-index hashing (Norouzi et al. 2012): of max_distance + 1 parts of the bits, at least one is
    equal in both. Give distinct hashes: an image that occurs 100,000 times would be compared with itself.

    Args:
        left_N, right_M: distinct 64-bit hashes.
        max_distance: bits.
    """
    masks = _part_masks(max_distance + 1)
    for number, mask in enumerate(masks):
        for lefts, rights in _equal_parts(left_N & mask, right_M & mask):
            different = left_N[lefts] ^ right_M[rights]
            distances = np.bitwise_count(different)
            is_found = distances <= max_distance
            for earlier in masks[:number]:  # where the pair was found before
                is_found &= (different & earlier) != 0
            found = np.flatnonzero(is_found)
            yield from zip(lefts[found].tolist(), rights[found].tolist(), distances[found].tolist(), strict=True)


def _part_masks(num_parts: int) -> list[np.uint64]:
    """Return the bits of each part; together they are all 64."""
    edges = [HASH_BITS * part // num_parts for part in range(num_parts + 1)]
    return [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(edges)]


def _equal_parts(left_N: Hashes, right_M: Hashes) -> Iterator[tuple[Positions, Positions]]:
    """Yield the positions of all equal values in blocks of at most some millions."""
    left_order, right_order = np.argsort(left_N), np.argsort(right_M)
    values = right_M[right_order]
    lows = np.searchsorted(values, left_N[left_order], side="left")
    counts = np.searchsorted(values, left_N[left_order], side="right") - lows
    ends = np.cumsum(counts)
    start = 0
    while start < len(left_N):
        before = ends[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + MAX_CANDIDATES, side="right")))
        block = counts[start:stop]
        within = np.arange(block.sum()) - np.repeat(ends[start:stop] - block - before, block)
        yield np.repeat(left_order[start:stop], block), right_order[np.repeat(lows[start:stop], block) + within]
        start = stop
