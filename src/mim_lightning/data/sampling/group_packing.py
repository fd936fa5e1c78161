"""Arrange the rows of a window: rows of one product together, and part of each batch from one category.

First rows fill groups of k (`_fill_groups`), then groups are assigned to batches' parts (`_assign`). Shapes: M rows,
S groups of k rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mim_lightning.types import NO_KEY

MIXED = -1  # category of a group with rows of several categories, or of none


@dataclass(frozen=True)
class _Groups:
    """In ascending order of product; groups of leftover rows come last, each as a product of its own."""

    rows: np.ndarray  # (S, k) positions in the window
    products: np.ndarray  # (S,) numbers
    categories: np.ndarray  # (S,) numbers


def arrange(
    products_M: np.ndarray,
    categories_M: np.ndarray,
    num_full_parts: int,
    groups_of_part: np.ndarray,
    num_same_category: int,
    group_size: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the positions 0 to M - 1, part after part.

    A product of n rows fills n // k groups with its own rows. No part has two groups of a product that has at most as
    many groups as there are full parts (exact if `num_same_category` is 0). The leftover rows of all products, fewer
    than k of each, fill further groups.

    Args:
        products_M, categories_M: hashed ids; `NO_KEY` is no product and no category.
        num_full_parts: the first parts, which are of equal size; a smaller one may follow.
        groups_of_part: number of groups in each part, M // k in total; rows that fill no group come at the very end.
        num_same_category: groups of each full part that are of one category, if there are enough.
        group_size: k.
    """
    groups, leftover = _fill_groups(products_M, categories_M, group_size, rng)
    part_of_S = _assign(groups, num_full_parts, groups_of_part, num_same_category, rng)
    return np.concatenate([groups.rows[np.argsort(part_of_S, kind="stable")].ravel(), leftover])


def _fill_groups(
    products_M: np.ndarray, categories_M: np.ndarray, k: int, rng: np.random.Generator
) -> tuple[_Groups, np.ndarray]:
    positions = np.arange(len(products_M))
    products = _number_at_random(np.where(products_M == NO_KEY, -2 - positions, products_M), rng)
    categories = np.where(categories_M == NO_KEY, MIXED, _number_at_random(categories_M, rng))
    order = rng.permutation(positions)  # which rows of a product form a group differs between epochs
    order = order[np.argsort(products[order], kind="stable")]
    counts = np.bincount(products)
    ordinals = positions - np.repeat(np.cumsum(counts) - counts, counts)
    is_full = ordinals < np.repeat(counts - counts % k, counts)
    full_Sk = order[is_full].reshape(-1, k)
    leftovers = _pack(order[~is_full], products, categories)
    num_packed = len(leftovers) // k * k
    packed_Sk = leftovers[:num_packed].reshape(-1, k)
    groups = _Groups(
        np.concatenate([full_Sk, packed_Sk]),
        np.concatenate([products[full_Sk[:, 0]], len(counts) + np.arange(len(packed_Sk))]),
        np.concatenate([categories[full_Sk[:, 0]], _common(categories[packed_Sk])]),
    )
    return groups, leftovers[num_packed:]


def _pack(rows: np.ndarray, products_M: np.ndarray, categories_M: np.ndarray) -> np.ndarray:
    """Order rows, given product by product, so that cutting them into groups splits few products.

    Category by category, the product with most rows is followed by that with fewest, and so on inward.
    """
    firsts = np.flatnonzero(np.diff(products_M[rows], prepend=-1))
    sizes = np.diff(firsts, append=len(rows))
    categories = categories_M[rows[firsts]]
    by_size = np.lexsort((-sizes, categories))
    position, count = _positions_in_runs(categories[by_size])
    inward = np.where(position < (count + 1) // 2, 2 * position, 2 * (count - position) - 1)
    chosen = by_size[np.lexsort((inward, categories[by_size]))]
    shifts = firsts[chosen] - (np.cumsum(sizes[chosen]) - sizes[chosen])
    return rows[np.repeat(shifts, sizes[chosen]) + np.arange(len(rows))]


def _assign(
    groups: _Groups, num_full_parts: int, groups_of_part: np.ndarray, num_same_category: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the part that each group is assigned to."""
    part_of_S = np.full(len(groups.products), -1)
    if num_same_category and num_full_parts:
        _assign_same_category(part_of_S, groups, num_full_parts, num_same_category, rng)
    others = np.flatnonzero(part_of_S < 0)
    num_free = groups_of_part - np.bincount(part_of_S[part_of_S >= 0], minlength=len(groups_of_part))
    part_of_S[others] = _assign_evenly(groups.products[others], num_free, rng)
    return part_of_S


def _assign_same_category(
    part_of_S: np.ndarray, groups: _Groups, num_parts: int, block_size: int, rng: np.random.Generator
) -> None:
    """Assign a block of `block_size` groups of one category to each part; a category gets blocks by its size.

    Categories too small for a block share one. Within a category every product occurs once before any occurs twice.
    """
    ordinals, _ = _positions_in_runs(groups.products)
    known = np.flatnonzero(groups.categories != MIXED)
    categories = groups.categories[known]
    counts = np.bincount(categories)
    small = np.where(counts < block_size, counts, 0)
    bins = np.where(small > 0, len(counts) + (np.cumsum(small) - small) // block_size, np.arange(len(counts)))
    sorting = np.lexsort((rng.random(len(known)), ordinals[known], categories, bins[categories]))
    line, line_bins = known[sorting], bins[categories][sorting]
    position, count = _positions_in_runs(line_bins)
    is_first = position == 0
    totals = np.cumsum(count[is_first] * num_parts / len(line))
    # rounding the running totals keeps each category within one block of its fraction, and the sum within the parts
    edges = np.minimum(np.floor(np.append(0, totals) + rng.random()).astype(int), num_parts)
    bin_idx = np.cumsum(is_first) - 1
    block = edges[bin_idx] + position // block_size
    chosen = block < edges[bin_idx + 1]
    part_of_S[line[chosen]] = rng.permutation(num_parts)[block[chosen]]


def _assign_evenly(products: np.ndarray, num_free: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Assign groups, given product by product, one to each part with space, round after round."""
    part_of = np.empty(len(products), dtype=np.int64)
    num_done = 0
    for level in range(int(num_free.max(initial=0))):
        parts = rng.permutation(np.flatnonzero(num_free > level))
        if num_done and products[num_done - 1] == products[num_done]:
            # a product that continues from the last round goes first to the parts that have none of it
            has_it = np.isin(parts, part_of[np.searchsorted(products, products[num_done]) : num_done])
            parts = np.concatenate([parts[~has_it], parts[has_it]])
        part_of[num_done : num_done + len(parts)] = parts
        num_done += len(parts)
    return part_of


def _number_at_random(keys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Number the distinct values in random order, and return the number of each key's value."""
    values, number = np.unique(keys, return_inverse=True)
    return rng.permutation(len(values))[number]


def _positions_in_runs(sorted_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of each element in its run of equal values, and the length of that run."""
    firsts = np.searchsorted(sorted_values, sorted_values, side="left")
    return np.arange(len(sorted_values)) - firsts, np.searchsorted(sorted_values, sorted_values, side="right") - firsts


def _common(values_Sk: np.ndarray) -> np.ndarray:
    """Return the value of each row if all its values are equal, else MIXED."""
    return np.where((values_Sk == values_Sk[:, :1]).all(axis=1), values_Sk[:, 0], MIXED)
