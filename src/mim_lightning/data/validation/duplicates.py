"""The same picture in two splits, or in a split and the catalogue, though it was re-encoded or resized.

A Manifest and the facts of its pictures come in, findings go out; `check_manifest` calls it. Pictures are the same
if their perceptual hashes are near each other and so are their colours.
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
from mim_lightning.data.validation.image_loading import Facts
from mim_lightning.data.validation.settings import ValidationSettings

HASH_BITS = 64
MAX_COLOUR_DISTANCE = 12  # levels of 255: colour variants of a product have the same grey picture
MAX_CANDIDATES = 2_000_000  # pairs that are compared at once, of about 50 bytes each
MAX_COMPARED = 50  # rows of one hash, whose colours are compared
Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]
_Place = tuple[Product | Query, ImageRef]
_Places = dict[int, list[_Place]]  # by hash


def find_duplicates(
    manifest: Manifest, facts: Facts, settings: ValidationSettings, train_split: str
) -> Iterator[Finding]:
    """Yield the query images that stand in another split too, or in the catalogue.

    Of two splits the finding stands at the row of the training split, which can be left out without changing what
    is evaluated; else at the one that comes first by name. Bad and near-empty pictures are not compared.
    """
    by_split = _places(manifest, facts, settings)
    # None, the catalogue, comes last
    order = sorted(by_split, key=lambda name: (name is None, name != train_split, name or ""))
    for split, other in combinations(order, 2):
        for (row, image), (twin, twin_image), distance in _pairs(by_split[split], by_split[other], facts, settings):
            assert isinstance(row, Query)
            kind = "image_in_two_splits"
            if other is None:
                kind = "photo_in_catalogue" if _answers(row, twin) else "reference_in_catalogue"
            near = "the same picture" if not distance else f"the same picture but for {distance} of {HASH_BITS} bits"
            yield Finding(
                kind=kind,
                table="queries",
                origin=row.origin,
                row_id=row.query_id,
                column="image",
                reason=f"{near} stands in {f'split {other!r}' if other else 'the catalogue'}: {twin.origin}",
                drops="row" if settings.is_bad(kind) else "",
                image=image,
                other_origin=twin.origin,
                other_image=twin_image,
            )


def _answers(row: Product | Query, twin: Product | Query) -> bool:
    """Return whether a query asks for a product."""
    return isinstance(row, Query) and isinstance(twin, Product) and twin.product_id in row.asked_ids


def near_equal(left_N: Hashes, right_M: Hashes, max_distance: int) -> Iterator[tuple[int, int, int]]:
    """Yield (left position, right position, distance) of all pairs at most `max_distance` bits apart, each once.

    Exact, by multi-index hashing (Norouzi et al. 2012): of max_distance + 1 parts of the bits, at least one is
    equal in both. Give distinct hashes, or a picture that occurs 100,000 times meets itself.

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
            places = np.flatnonzero(is_found)
            yield from zip(lefts[places].tolist(), rights[places].tolist(), distances[places].tolist(), strict=True)


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


def _places(manifest: Manifest, facts: Facts, settings: ValidationSettings) -> dict[str | None, _Places]:
    """Return where each hash stands, by split; None stands for the catalogue."""
    places: dict[str | None, _Places] = defaultdict(lambda: defaultdict(list))
    rows: list[tuple[str | None, _Place]] = [
        *((query.split, (query, query.image)) for query in manifest.queries if query.image is not None),
        *((None, (product, image)) for product in manifest.products.values() for image in product.images),
    ]
    for split, place in rows:
        found = facts[place[1]]
        if not found.kind and found.one_colour < settings.blank_image_fraction:
            places[split][found.picture_hash].append(place)
    return places


def _pairs(
    left: _Places, right: _Places, facts: Facts, settings: ValidationSettings
) -> Iterator[tuple[_Place, _Place, int]]:
    """Yield each place of the left side that has a twin on the right, with the nearest and its distance.

    A product that the left side asks for goes before a nearer one.
    """
    left_hashes, right_hashes = list(left), list(right)
    near: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, j, distance in near_equal(_array(left_hashes), _array(right_hashes), settings.max_hash_distance):
        near[left_hashes[i]].append((distance, right_hashes[j]))
    for picture_hash, others in near.items():
        candidates = [(place, distance) for distance, other in sorted(others) for place in right[other][:MAX_COMPARED]]
        for place in left[picture_hash]:
            colours = _colours(place, facts)
            twins = [
                (twin, distance)
                for twin, distance in candidates
                if np.abs(colours - _colours(twin, facts)).max() <= MAX_COLOUR_DISTANCE
            ]
            if twins:
                yield place, *next((found for found in twins if _answers(place[0], found[0][0])), twins[0])


def _array(hashes: Sequence[int]) -> Hashes:
    return np.array(hashes, dtype=np.uint64)


def _colours(place: _Place, facts: Facts) -> npt.NDArray[np.int16]:
    return np.frombuffer(bytes.fromhex(facts[place[1]].colours), dtype=np.uint8).astype(np.int16)
