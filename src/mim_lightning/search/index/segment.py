"""A segment: rows, their products, and a FAISS index of the rows; the unit that is searched, stored and replaced.

A segment is immutable: its index may be memory-mapped, and other threads may be searching it. Deleting rows returns a
copy that marks them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import faiss
import numpy as np

from mim_lightning.display.progress import ProgressMeter
from mim_lightning.search.index.card import Recall, StoredFile
from mim_lightning.search.index.faiss_types import (
    MAX_FETCHED_ON_GPU,
    copy_to_gpu,
    fill_index,
    search_parameters,
    set_effort,
    to_codes,
)
from mim_lightning.search.index.filters import Condition
from mim_lightning.search.index.index_settings import IndexSettings
from mim_lightning.search.index.index_type import BINARY, COARSE, num_candidates, num_rows_read
from mim_lightning.search.index.product_ranking import FetchRows, RankedRows, fetch_exactly, rank_products
from mim_lightning.search.index.products import IndexRows, ProductTable
from mim_lightning.search.index.recall import FindScores, tune_effort
from mim_lightning.search.index.small_vectors import Vectors

DELETED = "dead"  # name on disk of the part that marks deleted rows
_MAX_FETCHED = 2**14  # rows per query; more are found faster by comparing all
_EXACT_GAIN = 0.5  # comparing rows one by one is faster up to here; measured, see benchmarks/index_speed.py


@dataclass(frozen=True)
class Selection:
    """The rows that a search may find, one bit each: selections are cached, and there may be many rows."""

    bits: np.ndarray  # (N / 8,) uint8
    num_rows: int
    num_products: int  # that these rows have

    @cached_property
    def rows(self) -> np.ndarray:
        """Positions of the rows (C,) int64, ascending."""
        return np.flatnonzero(np.unpackbits(self.bits, bitorder="little"))

    @cached_property
    def selector(self) -> Any:
        """The same for FAISS."""
        return faiss.IDSelectorBitmap(self.bits)


@dataclass(frozen=True)
class Segment:
    """N rows of P products; `products` is in ascending order of id, so a lower position means a lower id."""

    kind: str
    index: Any  # FAISS index of N rows
    vectors: Vectors  # (N, D) float32 when read, contiguous, possibly memory-mapped
    product_idx: np.ndarray  # (N,) int32
    products: ProductTable
    settings: IndexSettings
    is_deleted: np.ndarray | None = None  # (N,) bool; None: no row is
    files: Mapping[str, StoredFile] = field(default_factory=dict)  # the parts that are already stored

    def search(self, query_QD: np.ndarray, num_wanted: int, conditions: Sequence[Condition] = ()) -> RankedRows:
        """Rank the products that meet the conditions; K is `num_wanted` or, if lower, their number."""
        selection = self._select(tuple(conditions)) if conditions or self.is_deleted is not None else None
        num_rows = len(self.vectors) if selection is None else selection.num_rows
        num_products = self.num_products if selection is None else selection.num_products
        keep = min(num_wanted, num_products)
        if keep == 0:
            shape = len(query_QD), 0
            return RankedRows(np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.float32))
        is_narrow = selection is not None and self._is_narrow(num_rows)

        def fetch(num_fetched: int) -> FetchRows:
            # comparing every row is faster than an index that has to rank most of them
            is_most = 4 * num_candidates(self.kind, self.settings, num_fetched) > num_rows
            if is_narrow or is_most or num_fetched > _MAX_FETCHED:
                return fetch_exactly(self.vectors, np.arange(num_rows) if selection is None else selection.rows)
            return self._fetch_indexed(selection)

        return rank_products(query_QD, self.vectors, self.product_idx, keep, num_rows, num_products, fetch)

    def _fetch_indexed(self, selection: Selection | None) -> FetchRows:
        def fetch(query_QD: np.ndarray, num_fetched: int) -> np.ndarray:
            num_fetched = num_candidates(self.kind, self.settings, num_fetched)
            if selection is None and num_fetched <= MAX_FETCHED_ON_GPU and self._gpu_index is not None:
                return self._gpu_index.search(query_QD, num_fetched)[1]
            if selection is None and self.kind not in COARSE:
                return self.index.search(query_QD, num_fetched)[1]
            num_rows = len(self.vectors)
            if self.kind in BINARY:
                return self._fetch_bits(query_QD, num_fetched, selection)
            allowed = (num_rows, None) if selection is None else (selection.num_rows, selection.selector)
            params = search_parameters(self.kind, self.settings, num_rows, allowed[0], num_fetched, allowed[1])
            return self.index.search(query_QD, num_fetched, params=params)[1]

        return fetch

    def _fetch_bits(self, query_QD: np.ndarray, num_fetched: int, selection: Selection | None) -> np.ndarray:
        """Return candidates by the bits that differ; FAISS's lists of bits have no selectors, so more are fetched."""
        num_rows = len(self.vectors)
        num_allowed = num_rows if selection is None else selection.num_rows
        params = search_parameters(self.kind, self.settings, num_rows, num_allowed, num_fetched, None)
        num_fetched = min(num_rows, math.ceil(num_fetched * num_rows / num_allowed))
        rows_QF = self.index.search(to_codes(self.index, query_QD), num_fetched, params=params)[1]
        if selection is None:
            return rows_QF
        bits = selection.bits[rows_QF.clip(min=0) // 8] >> (rows_QF.clip(min=0) % 8)
        return np.where((rows_QF >= 0) & (bits & 1 > 0), rows_QF, -1)

    def _is_narrow(self, num_rows: int) -> bool:
        """Return whether comparing the selected rows is faster than an index search wide enough to find them."""
        fraction = num_rows / len(self.vectors)
        return num_rows <= _EXACT_GAIN * num_rows_read(self.kind, self.settings, len(self.vectors)) / fraction

    @cached_property
    def _gpu_index(self) -> Any:
        return copy_to_gpu(self.kind, self.index)

    @cached_property
    def num_products(self) -> int:
        """Number of products with a row, deleted or not."""
        return len(np.unique(self.product_idx))

    @cached_property
    def _select(self) -> Callable[[tuple[Condition, ...]], Selection]:
        return lru_cache(maxsize=32)(self._make_selection)  # paging and refined searches repeat a filter

    def _make_selection(self, conditions: tuple[Condition, ...]) -> Selection:
        is_selected_N = self.products.mask(conditions)[self.product_idx] & self.is_live
        num_products = int(self._has_row(is_selected_N).sum())
        return Selection(np.packbits(is_selected_N, bitorder="little"), int(is_selected_N.sum()), num_products)

    def _has_row(self, is_row_N: np.ndarray) -> np.ndarray:
        has_row_P = np.zeros(len(self.products), dtype=bool)
        has_row_P[self.product_idx[is_row_N]] = True
        return has_row_P

    @property
    def is_live(self) -> np.ndarray:
        """Which rows (N,) are not deleted."""
        return np.ones(len(self.vectors), dtype=bool) if self.is_deleted is None else ~self.is_deleted

    @property
    def num_deleted(self) -> int:
        return 0 if self.is_deleted is None else int(self.is_deleted.sum())

    @cached_property
    def has_live_row(self) -> np.ndarray:
        """Which products (P,) have a live row; the others no longer exist for a caller."""
        return self._has_row(self.is_live)

    def find(self, product_ids: Sequence[str]) -> np.ndarray:
        """Return the position of each product, -1 for an unknown id."""
        product_idx = self.products.find(product_ids)
        return np.where(self.has_live_row[product_idx], product_idx, -1)

    def rows_of(self, product_idx: np.ndarray) -> np.ndarray:
        """Return the live rows of some products, ascending."""
        return np.flatnonzero(np.isin(self.product_idx, product_idx) & self.is_live)

    def without(self, product_ids: Sequence[str]) -> Segment:
        """Return the segment with the rows of these products marked as deleted."""
        product_idx = self.find(product_ids)
        rows = self.rows_of(product_idx[product_idx >= 0])
        if not len(rows):
            return self
        is_deleted_N = ~self.is_live
        is_deleted_N[rows] = True
        files = {part: stored for part, stored in self.files.items() if part != DELETED}
        return replace(self, is_deleted=is_deleted_N, files=files)


def build_segment(
    kind: str, rows: IndexRows, settings: IndexSettings, on_progress: Callable[[int], None] = lambda rows: None
) -> Segment:
    """Return a segment of the rows with an index of its own.

    Raises:
        ValueError: too few rows for the index type.
    """
    index = fill_index(kind, rows.vectors, settings, on_progress)
    return Segment(kind, index, rows.vectors, rows.product_idx.astype(np.int32), rows.products, settings)


def build_measured_segment(
    kind: str, rows: IndexRows, settings: IndexSettings, given_QD: np.ndarray | None = None
) -> tuple[Segment, Recall]:
    """Return a segment and its recall; the search effort is raised while recall is below `min_recall`.

    Args:
        given_QD: queries to measure recall with, if there are any.
    """
    with ProgressMeter(len(rows.vectors), verb="", label=f"building {kind}") as meter:
        segment = build_segment(kind, rows, settings, meter.update)

    def search_with(tried: IndexSettings) -> FindScores:
        set_effort(kind, segment.index, tried)
        tried_segment = replace(segment, settings=tried)
        return lambda query_QD, num_wanted: tried_segment.search(query_QD, num_wanted).scores

    tuned, recall = tune_effort(kind, rows, settings, given_QD, search_with)
    return replace(segment, settings=tuned), recall
