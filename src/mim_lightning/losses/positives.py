"""Which rows and columns share a product, found by sorted keys: a tile at a time, or as one table.

A column that shares a product with a row is its positive, hence never its negative: two queries of one product do not
repel each other.

B rows with R keys each, G columns with S keys each. Keys are int64; negative keys are no product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Positives(NamedTuple):
    """The positive entries of a tile, each once, (P,): their rows and columns in it, and weights (None: all 1)."""

    rows: Tensor
    columns: Tensor
    weights: Tensor | None


class ProductMatches:
    """The positives of a pair, from the product keys of its rows and columns.

    A tile costs a binary search a row key, instead of comparing each of R x S keys of every row and column.

    Args:
        left_keys_BR, right_keys_GS: products of each row and column, on the CPU.
        left_grades_BR, right_grades_GS: weights of those products. A positive weighs the product of the two, the
            largest one if several products are shared; None: 1.
        width: columns of a tile; default: all in one.
    """

    def __init__(
        self,
        left_keys_BR: Tensor,
        right_keys_GS: Tensor,
        left_grades_BR: Tensor | None = None,
        right_grades_GS: Tensor | None = None,
        width: int = 1 << 30,
    ) -> None:
        self.left_keys_BR, self.left_grades_BR = left_keys_BR, left_grades_BR
        self.num_rows, self.num_columns, self.width = len(left_keys_BR), len(right_keys_GS), width
        self._may_repeat = max(left_keys_BR.shape[1], right_keys_GS.shape[1]) > 1
        self._is_graded = left_grades_BR is not None or right_grades_GS is not None
        self._sections = []  # by tile of columns: its keys in order, and the entry (column, key) that each is
        for start in range(0, self.num_columns, width):
            keys, entries = right_keys_GS[start : start + width].flatten().sort(stable=True)
            grades = None
            if self._is_graded:
                grades = (
                    torch.ones(len(keys)) if right_grades_GS is None else right_grades_GS[start:].flatten()[entries]
                )
            self._sections.append((keys, entries // right_keys_GS.shape[1], grades))

    def tile(self, rows: slice, tile_idx: int) -> Positives:
        """Return the positives of some rows in the columns from `tile_idx * width` on."""
        sorted_keys, columns, right_grades = self._sections[tile_idx]
        keys = self.left_keys_BR[rows].flatten()
        first = torch.searchsorted(sorted_keys, keys)
        num_found = (torch.searchsorted(sorted_keys, keys, right=True) - first).masked_fill_(keys < 0, 0)
        entries = torch.arange(len(keys)).repeat_interleave(num_found)
        found = torch.arange(len(entries)) + (first - num_found.cumsum(0) + num_found)[entries]
        rows_P, columns_P = entries // self.left_keys_BR.shape[1], columns[found]
        weights_P = None
        if self._is_graded:
            assert right_grades is not None
            weights_P = right_grades[found]
            if self.left_grades_BR is not None:
                weights_P = weights_P * self.left_grades_BR[rows].flatten()[entries]
        if self._may_repeat and len(rows_P):  # rows that share several products, or name one twice
            places, inverse = (rows_P * self.num_columns + columns_P).unique(return_inverse=True)
            rows_P, columns_P = places // self.num_columns, places % self.num_columns
            if weights_P is not None:
                weights_P = weights_P.new_zeros(len(places)).scatter_reduce_(0, inverse, weights_P, "amax")
        return Positives(rows_P, columns_P, weights_P)

    def mask(self) -> Tensor:
        """Return all positives as a table, (B, G) bool."""
        mask_BG = torch.zeros(self.num_rows, self.num_columns, dtype=torch.bool)
        for tile_idx in range(len(self._sections)):
            rows_P, columns_P, _ = self.tile(slice(None), tile_idx)
            mask_BG[rows_P, columns_P + tile_idx * self.width] = True
        return mask_BG


def share_product(left_keys_BR: Tensor, right_keys_GS: Tensor) -> Tensor:
    """Return (B, G) bool: whether two rows have a product in common. Negative keys are no product."""
    if left_keys_BR.is_cpu:
        return ProductMatches(left_keys_BR, right_keys_GS).mask()
    # comparisons, unlike the number of matches, need no synchronization of the device
    shared_BG = torch.zeros(len(left_keys_BR), len(right_keys_GS), dtype=torch.bool, device=left_keys_BR.device)
    for left_B in left_keys_BR.unbind(1):
        for right_G in right_keys_GS.unbind(1):
            shared_BG |= (left_B[:, None] == right_G) & (left_B >= 0)[:, None]
    return shared_BG
