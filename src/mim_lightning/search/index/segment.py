"""A segment: rows, their products, and a FAISS index over the rows; the unit that is searched, stored and replaced.

Queries and conditions come in from `faiss_index`, products by position in the segment go out. A segment never
changes: its index may be memory-mapped, and others may be searching it. Deleted rows are marked in a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import faiss
import numpy as np

from mim_lightning.search.index.card import StoredFile
from mim_lightning.search.index.faiss_kinds import fill_index, fits_gpu, search_parameters, to_gpu
from mim_lightning.search.index.filters import Condition
from mim_lightning.search.index.kind import COARSE, num_candidates, rows_read
from mim_lightning.search.index.nearest_products import FetchRows, Ranked, fetch_exactly, rank_products
from mim_lightning.search.index.products import ProductTable
from mim_lightning.search.index.settings import IndexSettings

_SPARE_PRODUCTS = 200  # of so many products all rows are fetched at once
_MOST_FETCHED = 2**14  # rows a query; more are found faster by comparing all
_EXACT_GAIN = 0.5  # comparing rows one by one is faster up to here; measured, see benchmarks/index_speed.py


@dataclass(frozen=True)
class Selection:
    """The rows that a search may find, a bit each: filters are kept, and there may be many rows."""

    bits: np.ndarray  # (N / 8,) uint8
    num_rows: int
    num_products: int  # that they have

    @cached_property
    def rows(self) -> np.ndarray:
        """Their positions (C,) int64, ascending."""
        return np.flatnonzero(np.unpackbits(self.bits, bitorder="little"))

    @cached_property
    def selector(self) -> Any:
        """The same for FAISS."""
        return faiss.IDSelectorBitmap(self.bits)


@dataclass(frozen=True)
class Segment:
    """N rows of P products; `products` is ascending by id, so that a lower position means a lower id."""

    kind: str
    index: Any  # of FAISS, N rows
    vectors: np.ndarray  # (N, D) float32, contiguous, may lie in a file
    product_idx: np.ndarray  # (N,) int32
    products: ProductTable
    settings: IndexSettings
    is_dead: np.ndarray | None = None  # (N,) bool; None: no row is
    files: Mapping[str, StoredFile] = field(default_factory=dict)  # the parts that are stored already

    def search(self, query_QD: np.ndarray, num_wanted: int, conditions: Sequence[Condition] = ()) -> Ranked:
        """Rank the products that meet the conditions; K is `num_wanted` or how many there are."""
        selection = self._select(tuple(conditions)) if conditions or self.is_dead is not None else None
        num_rows = len(self.vectors) if selection is None else selection.num_rows
        num_products = self.num_products if selection is None else selection.num_products
        keep = min(num_wanted, num_products)
        if keep == 0:
            shape = len(query_QD), 0
            return Ranked(np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.float32))
        is_one_to_one = num_rows == num_products
        first = keep + 1 + (0 if is_one_to_one else min(keep, _SPARE_PRODUCTS) * num_rows // num_products)
        is_narrow = selection is not None and self._is_narrow(num_rows)

        def fetch(num_fetched: int) -> FetchRows:
            if is_narrow or self._is_most(num_fetched, num_rows):
                rows = np.arange(num_rows) if selection is None else selection.rows
                return fetch_exactly(self.vectors, rows)
            return self._fetch_indexed(selection)

        vectors, product_idx = self.vectors, self.product_idx
        return rank_products(query_QD, vectors, product_idx, keep, num_rows, first, is_one_to_one, fetch)

    def _fetch_indexed(self, selection: Selection | None) -> FetchRows:
        def fetch(query_QD: np.ndarray, num_fetched: int) -> np.ndarray:
            num_fetched = num_candidates(self.kind, self.settings, num_fetched)
            if selection is None and self._gpu_index is not None and fits_gpu(num_fetched):
                return self._gpu_index.search(query_QD, num_fetched)[1]
            if selection is None and self.kind not in COARSE:
                return self.index.search(query_QD, num_fetched)[1]
            num_rows = len(self.vectors)
            allowed = (num_rows, None) if selection is None else (selection.num_rows, selection.selector)
            params = search_parameters(self.kind, self.settings, num_rows, allowed[0], num_fetched, allowed[1])
            return self.index.search(query_QD, num_fetched, params=params)[1]

        return fetch

    def _is_narrow(self, num_rows: int) -> bool:
        """Is it faster to compare the rows one by one than to search an index so wide that it finds enough of them?"""
        share = num_rows / len(self.vectors)
        return num_rows <= _EXACT_GAIN * rows_read(self.kind, self.settings, len(self.vectors)) / share

    def _is_most(self, num_fetched: int, num_rows: int) -> bool:
        """Is it faster to compare all rows than to have an index order so many of them?"""
        return 4 * num_candidates(self.kind, self.settings, num_fetched) > num_rows or num_fetched > _MOST_FETCHED

    @cached_property
    def _gpu_index(self) -> Any:
        return to_gpu(self.kind, self.index)

    @cached_property
    def num_products(self) -> int:
        """How many products have a row; dead rows count."""
        return len(np.unique(self.product_idx))

    @cached_property
    def _select(self) -> Callable[[tuple[Condition, ...]], Selection]:
        return lru_cache(maxsize=32)(self._make_selection)  # a page or a refined search comes with the same filter

    def _make_selection(self, conditions: tuple[Condition, ...]) -> Selection:
        is_found_N = self.products.mask(conditions)[self.product_idx]
        if self.is_dead is not None:
            is_found_N &= ~self.is_dead
        num_rows = int(is_found_N.sum())
        has_row_P = np.zeros(len(self.products), dtype=bool)
        has_row_P[self.product_idx[is_found_N]] = True
        return Selection(np.packbits(is_found_N, bitorder="little"), num_rows, int(has_row_P.sum()))

    @property
    def is_living(self) -> np.ndarray:
        return np.ones(len(self.vectors), dtype=bool) if self.is_dead is None else ~self.is_dead

    @property
    def num_dead(self) -> int:
        return 0 if self.is_dead is None else int(self.is_dead.sum())

    @cached_property
    def has_row(self) -> np.ndarray:
        """Which products (P,) have a living row; the others are as good as gone."""
        has_row_P = np.zeros(len(self.products), dtype=bool)
        has_row_P[self.product_idx[self.is_living]] = True
        return has_row_P

    def find(self, product_ids: Sequence[str]) -> np.ndarray:
        """Return the position of each product, -1 where there is none of that id."""
        product_idx = self.products.find(product_ids)
        return np.where(self.has_row[product_idx], product_idx, -1)

    def rows_of(self, product_idx: np.ndarray) -> np.ndarray:
        """Return the living rows of some products, ascending."""
        return np.flatnonzero(np.isin(self.product_idx, product_idx) & self.is_living)

    def without(self, rows: np.ndarray) -> Segment:
        """Return the segment with more rows marked as dead."""
        if not len(rows):
            return self
        is_dead_N = ~self.is_living
        is_dead_N[rows] = True
        files = {part: stored for part, stored in self.files.items() if part != "dead"}
        return replace(self, is_dead=is_dead_N, files=files)


def build_segment(
    kind: str,
    vectors_ND: np.ndarray,
    product_idx_N: np.ndarray,
    products: ProductTable,
    settings: IndexSettings,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Segment:
    """Return a segment of the rows with an index of its own.

    Raises:
        ValueError: too few rows for the kind.
    """
    index = fill_index(kind, vectors_ND, settings, on_progress)
    return Segment(kind, index, vectors_ND, product_idx_N.astype(np.int32), products, settings)
