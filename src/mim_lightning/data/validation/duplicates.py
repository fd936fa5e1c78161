"""Finds equal images in two splits, or in a split and the catalog, also if they were encoded again or resized.

Images are equal if their perceptual hashes are close, and so are their colors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

from mim_lightning.data.images.reader import ImageRef
from mim_lightning.data.manifest.manifest import Manifest, Product, Query
from mim_lightning.data.validation.findings import Finding
from mim_lightning.data.validation.image_checks import ImageTable
from mim_lightning.data.validation.settings import ValidationSettings

HASH_BITS = 64
MAX_COLOR_DISTANCE = 12  # levels of 255: color variants of a product have the same gray image
MAX_CANDIDATES = 2_000_000  # pairs compared at once, of about 50 bytes each
MAX_COMPARED = 50  # rows of one hash whose colors are compared
Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]
_Row = tuple[Product | Query, ImageRef]
_Rows = dict[int, list[_Row]]  # by hash


def find_duplicates(
    manifest: Manifest, images: ImageTable, settings: ValidationSettings, train_split: str
) -> Iterator[Finding]:
    """Yield the query images that are in another split or in the catalog too.

    Of two splits the row of the training split is reported, which can be dropped without changing the evaluation; else
    that of the first split by name. Invalid and blank images are not compared.
    """
    by_split = _rows_by_hash(manifest, images, settings)
    # None, the catalog, is last
    order = sorted(by_split, key=lambda name: (name is None, name != train_split, name or ""))
    for split, other in combinations(order, 2):
        pairs = _equal_images(by_split[split], by_split[other], images, settings)
        for (row, image), (twin, twin_image), distance in pairs:
            assert isinstance(row, Query)
            kind = "image_in_two_splits"
            if other is None:
                kind = "photo_in_catalogue" if _is_target(row, twin) else "reference_in_catalogue"
            near = "the same image" if not distance else f"the same image but for {distance} of {HASH_BITS} bits"
            yield Finding(
                kind=kind,
                table="queries",
                origin=row.origin,
                row_id=row.query_id,
                column="image",
                reason=f"{near} is in {f'split {other!r}' if other else 'the catalog'}: {twin.origin}",
                drops=settings.drops(kind),
                image=image,
                other_origin=twin.origin,
                other_image=twin_image,
            )


def _is_target(row: Product | Query, twin: Product | Query) -> bool:
    """Is the product a target of the query?"""
    return isinstance(row, Query) and isinstance(twin, Product) and twin.product_id in row.target_ids


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


def _rows_by_hash(manifest: Manifest, images: ImageTable, settings: ValidationSettings) -> dict[str | None, _Rows]:
    """Return the rows of each hash, by split; None is the catalog."""
    by_split: dict[str | None, _Rows] = defaultdict(lambda: defaultdict(list))
    rows: list[tuple[str | None, _Row]] = [
        *((query.split, (query, query.image)) for query in manifest.queries if query.image is not None),
        *((None, (product, image)) for product in manifest.products.values() for image in product.images),
    ]
    for split, row in rows:
        image = images[row[1]]
        if not image.kind and image.uniform_fraction < settings.blank_image_fraction:
            by_split[split][image.perceptual_hash].append(row)
    return by_split


def _equal_images(
    left: _Rows, right: _Rows, images: ImageTable, settings: ValidationSettings
) -> Iterator[tuple[_Row, _Row, int]]:
    """Yield each row of the left side with an equal image on the right, with the closest of these and its distance.

    A target of the left row is preferred to a closer image.
    """
    left_hashes, right_hashes = list(left), list(right)
    near: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, j, distance in near_equal(_array(left_hashes), _array(right_hashes), settings.max_hash_distance):
        near[left_hashes[i]].append((distance, right_hashes[j]))
    for image_hash, others in near.items():
        candidates = [(row, distance) for distance, other in sorted(others) for row in right[other][:MAX_COMPARED]]
        for row in left[image_hash]:
            colors = _colors(row, images)
            twins = [
                (twin, distance)
                for twin, distance in candidates
                if np.abs(colors - _colors(twin, images)).max() <= MAX_COLOR_DISTANCE
            ]
            if twins:
                yield row, *next((found for found in twins if _is_target(row[0], found[0][0])), twins[0])


def _array(hashes: Sequence[int]) -> Hashes:
    return np.array(hashes, dtype=np.uint64)


def _colors(row: _Row, images: ImageTable) -> npt.NDArray[np.int16]:
    return np.frombuffer(bytes.fromhex(images[row[1]].grid_colors), dtype=np.uint8).astype(np.int16)
