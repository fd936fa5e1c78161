"""The rows of a window arranged so that rows of one product lie together, and share a batch with look-alikes.

Product and category of each row come in, an order of the rows goes out; `grouped` cuts it into parts of batches.
First rows fill slots of k (`_fill_slots`), then slots are dealt to parts (`_deal_slots`). M rows, S slots of k rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mim_lightning.types import NO_KEY

MIXED = -1  # the category of a slot with rows of several categories, or of none


@dataclass(frozen=True)
class _Slots:
    """Ascending by product; slots of leftovers come last, each as a product of its own."""

    rows: np.ndarray  # (S, k) places in the window
    products: np.ndarray  # (S,) numbers
    categories: np.ndarray  # (S,) numbers


def arrange(
    products_M: np.ndarray,
    categories_M: np.ndarray,
    num_full_parts: int,
    slots_of_part: np.ndarray,
    num_hard: int,
    rows_per_slot: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the places 0 to M - 1, part after part.

    A product of n rows fills n // k slots with rows of its own. No part holds two slots of a product that has no
    more of them than there are full parts (exact where `num_hard` is 0). What is left of all products, fewer than k
    rows of each, fills further slots.

    Args:
        products_M, categories_M: id keys; `NO_KEY` is no product and no category.
        num_full_parts: the first parts, which are of equal size; a smaller one may follow.
        slots_of_part: slots that each part holds, M // k together; rows that fill no slot come at the very end.
        num_hard: slots of each full part that are of one category, as far as there are so many.
        rows_per_slot: k.
    """
    slots, rest = _fill_slots(products_M, categories_M, rows_per_slot, rng)
    part_of_S = _deal_slots(slots, num_full_parts, slots_of_part, num_hard, rng)
    return np.concatenate([slots.rows[np.argsort(part_of_S, kind="stable")].ravel(), rest])


def _fill_slots(
    products_M: np.ndarray, categories_M: np.ndarray, k: int, rng: np.random.Generator
) -> tuple[_Slots, np.ndarray]:
    places = np.arange(len(products_M))
    products = _number_at_random(np.where(products_M == NO_KEY, -2 - places, products_M), rng)
    categories = np.where(categories_M == NO_KEY, MIXED, _number_at_random(categories_M, rng))
    order = rng.permutation(places)  # which rows of a product meet differs between epochs
    order = order[np.argsort(products[order], kind="stable")]
    counts = np.bincount(products)
    ordinals = places - np.repeat(np.cumsum(counts) - counts, counts)
    fills = ordinals < np.repeat(counts - counts % k, counts)
    full_Sk = order[fills].reshape(-1, k)
    leftovers = _pack(order[~fills], products, categories)
    num_packed = len(leftovers) // k * k
    packed_Sk = leftovers[:num_packed].reshape(-1, k)
    slots = _Slots(
        np.concatenate([full_Sk, packed_Sk]),
        np.concatenate([products[full_Sk[:, 0]], len(counts) + np.arange(len(packed_Sk))]),
        np.concatenate([categories[full_Sk[:, 0]], _common(categories[packed_Sk])]),
    )
    return slots, leftovers[num_packed:]


def _pack(rows: np.ndarray, products_M: np.ndarray, categories_M: np.ndarray) -> np.ndarray:
    """Order rows, given product by product, so that cutting them into slots tears few products apart.

    Category by category, the product with most rows is followed by that with fewest, and so on inwards.
    """
    firsts = np.flatnonzero(np.diff(products_M[rows], prepend=-1))
    sizes = np.diff(firsts, append=len(rows))
    categories = categories_M[rows[firsts]]
    by_size = np.lexsort((-sizes, categories))
    place, count = _places_in_runs(categories[by_size])
    inwards = np.where(place < (count + 1) // 2, 2 * place, 2 * (count - place) - 1)
    chosen = by_size[np.lexsort((inwards, categories[by_size]))]
    shifts = firsts[chosen] - (np.cumsum(sizes[chosen]) - sizes[chosen])
    return rows[np.repeat(shifts, sizes[chosen]) + np.arange(len(rows))]


def _deal_slots(
    slots: _Slots, num_full_parts: int, slots_of_part: np.ndarray, num_hard: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the part that each slot goes to."""
    part_of_S = np.full(len(slots.products), -1)
    if num_hard and num_full_parts:
        _deal_hard(part_of_S, slots, num_full_parts, num_hard, rng)
    others = np.flatnonzero(part_of_S < 0)
    room = slots_of_part - np.bincount(part_of_S[part_of_S >= 0], minlength=len(slots_of_part))
    part_of_S[others] = _deal_evenly(slots.products[others], room, rng)
    return part_of_S


def _deal_hard(part_of_S: np.ndarray, slots: _Slots, num_parts: int, num_hard: int, rng: np.random.Generator) -> None:
    """Deal a block of `num_hard` slots of one category to each part; a category gets blocks by its size.

    Categories too small for a block share one. Inside a category every product comes once before any comes twice.
    """
    ordinals, _ = _places_in_runs(slots.products)
    known = np.flatnonzero(slots.categories != MIXED)
    categories = slots.categories[known]
    counts = np.bincount(categories)
    small = np.where(counts < num_hard, counts, 0)
    bins = np.where(small > 0, len(counts) + (np.cumsum(small) - small) // num_hard, np.arange(len(counts)))
    sorting = np.lexsort((rng.random(len(known)), ordinals[known], categories, bins[categories]))
    line, line_bins = known[sorting], bins[categories][sorting]
    place, count = _places_in_runs(line_bins)
    is_first = place == 0
    shares = np.cumsum(count[is_first] * num_parts / len(line))
    # rounding the running totals keeps each category within one block of its share, and the sum within the parts
    edges = np.minimum(np.floor(np.append(0, shares) + rng.random()).astype(int), num_parts)
    bin_idx = np.cumsum(is_first) - 1
    block = edges[bin_idx] + place // num_hard
    chosen = block < edges[bin_idx + 1]
    part_of_S[line[chosen]] = rng.permutation(num_parts)[block[chosen]]


def _deal_evenly(products: np.ndarray, room: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deal slots, given product by product, one to each part with room, and again until all are dealt."""
    part_of = np.empty(len(products), dtype=np.int64)
    dealt = 0
    for level in range(int(room.max(initial=0))):
        parts = rng.permutation(np.flatnonzero(room > level))
        if dealt and products[dealt - 1] == products[dealt]:
            # the product that goes on from the last round comes first to the parts that have none of it
            has_it = np.isin(parts, part_of[np.searchsorted(products, products[dealt]) : dealt])
            parts = np.concatenate([parts[~has_it], parts[has_it]])
        part_of[dealt : dealt + len(parts)] = parts
        dealt += len(parts)
    return part_of


def _number_at_random(keys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return for each key the number of its value, 0 to the number of values - 1, in random order."""
    values, number = np.unique(keys, return_inverse=True)
    return rng.permutation(len(values))[number]


def _places_in_runs(sorted_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return of each element its place in its run of equal values, and the length of that run."""
    firsts = np.searchsorted(sorted_values, sorted_values, side="left")
    return np.arange(len(sorted_values)) - firsts, np.searchsorted(sorted_values, sorted_values, side="right") - firsts


def _common(values_Sk: np.ndarray) -> np.ndarray:
    """Return the value of each row if all its values are equal, else MIXED."""
    return np.where((values_Sk == values_Sk[:, :1]).all(axis=1), values_Sk[:, 0], MIXED)
