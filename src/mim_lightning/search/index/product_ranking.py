"""From rows to products: the best products of each query, one hit per product however many rows it has.

Scores are computed here only, one pair at a time, so that the score of a row does not depend on the index type, the
other queries or the filter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import faiss
import numpy as np

from mim_lightning.search.index.small_vectors import Int8Vectors, Vectors

_ROUNDING = 1e-6  # an index's own score of a unit vector may differ by this much from ours
_CHUNK_ELEMENTS = 2**22  # scores in memory at once
_DECODED_ROWS = 2**13  # of 8-bit integers, in memory as float32 at once
_FULLY_FETCHED = 200  # products; all rows of so many products are fetched at once
FetchRows = Callable[[np.ndarray, int], np.ndarray]  # queries (Q, D), F -> rows (Q, F), -1 where there is none


class RankedRows(NamedTuple):
    """The best K products of Q queries; -1 and -inf where there are fewer."""

    product_idx: np.ndarray  # (Q, K) int64
    rows: np.ndarray  # (Q, K) int64, the best row of each product
    scores: np.ndarray  # (Q, K) float32


def compute_scores(query_QD: np.ndarray, vectors_ND: Vectors, rows_QF: np.ndarray) -> np.ndarray:
    """Return the inner products (Q, F) of each query with its rows, -inf for row -1; arrays are contiguous."""
    scores_QF, pointer = np.empty(rows_QF.shape, dtype=np.float32), faiss.swig_ptr
    if isinstance(vectors_ND, Int8Vectors):
        for query, (query_D, rows_F) in enumerate(zip(query_QD, rows_QF, strict=True)):
            for start in range(0, len(rows_F), _DECODED_ROWS):
                rows = rows_F[start : start + _DECODED_ROWS]
                places = np.where(rows >= 0, np.arange(len(rows)), -1)
                part = compute_scores(query_D[None], vectors_ND[rows], places[None])
                scores_QF[query, start : start + len(rows)] = part[0]
        return scores_QF
    arrays = pointer(scores_QF), pointer(query_QD), pointer(vectors_ND), pointer(rows_QF)
    faiss.fvec_inner_products_by_idx(*arrays, query_QD.shape[1], *rows_QF.shape)
    return scores_QF


def rank_products(
    query_QD: np.ndarray,
    vectors_ND: Vectors,
    product_idx_N: np.ndarray,
    num_wanted: int,
    num_rows: int,
    num_products: int,
    fetch: Callable[[int], FetchRows],
) -> RankedRows:
    """Rank products, fetching more rows for the queries whose answer is not certain yet.

    The answer of a query is certain if its last product scores above the last fetched row: a row that was not fetched
    can then be neither a better row of another product nor a tie. It is also certain if there are enough products and
    the index had no more rows, or if all rows were fetched.

    Args:
        num_wanted: K, at most `num_products`.
        num_rows: rows that may be found; fetching this many means all.
        num_products: products that these rows have.
        fetch: number of rows -> how to fetch them; exactly, from some number on.
    """
    is_one_to_one = num_rows == num_products
    num_spare = 0 if is_one_to_one else min(num_wanted, _FULLY_FETCHED) * num_rows // num_products
    num_fetched = min(num_wanted + 1 + num_spare, num_rows)

    def rank(part_QD: np.ndarray) -> tuple[RankedRows, np.ndarray]:
        rows_QF = fetch(num_fetched)(part_QD, num_fetched)
        scores_QF = compute_scores(part_QD, vectors_ND, rows_QF)
        # row -1 takes the product of another row; its score is -inf
        return take_best_rows(scores_QF, rows_QF, product_idx_N[rows_QF], num_wanted, is_one_to_one)

    ranked, is_certain = _rank_in_chunks(rank, query_QD, num_fetched)
    if is_certain.all():
        return ranked
    pending = np.flatnonzero(~is_certain)
    while len(pending) and num_fetched < num_rows:
        num_fetched = min(4 * num_fetched, num_rows)
        again, is_certain = _rank_in_chunks(rank, query_QD[pending], num_fetched)
        for whole, part in zip(ranked, again, strict=True):
            whole[pending] = part
        pending = pending[~is_certain]
    return ranked


def _rank_in_chunks(
    rank: Callable[[np.ndarray], tuple[RankedRows, np.ndarray]], query_QD: np.ndarray, num_fetched: int
) -> tuple[RankedRows, np.ndarray]:
    """Rank a few queries at a time where very many rows are fetched for each."""
    chunk = max(1, _CHUNK_ELEMENTS // num_fetched)
    if len(query_QD) <= chunk:
        return rank(query_QD)
    parts = [rank(query_QD[start : start + chunk]) for start in range(0, len(query_QD), chunk)]
    ranked = (np.concatenate(arrays) for arrays in zip(*(part for part, _ in parts), strict=True))
    return RankedRows(*ranked), np.concatenate([is_certain for _, is_certain in parts])


def take_best_rows(
    scores_QF: np.ndarray,
    rows_QF: np.ndarray,
    products_QF: np.ndarray,
    num_wanted: int,
    is_one_to_one: bool = False,
) -> tuple[RankedRows, np.ndarray]:
    """Return the ranking, one hit per product, and for which queries (Q,) no row that was not fetched can change it.

    Args:
        products_QF: of the fetched rows; equal scores are ordered by it.
        is_one_to_one: no product has two rows.
    """
    is_sorted = (scores_QF[:, 1:] < scores_QF[:, :-1]).all()  # and so without ties, and without row -1 except the last
    if not is_sorted:
        queries_Q1, order_QF = np.arange(len(rows_QF))[:, None], np.lexsort((rows_QF, products_QF, -scores_QF))
        scores_QF, rows_QF, products_QF = (part[queries_Q1, order_QF] for part in (scores_QF, rows_QF, products_QF))
    if is_one_to_one:
        ranked = RankedRows(products_QF[:, :num_wanted], rows_QF[:, :num_wanted], scores_QF[:, :num_wanted])
        if not is_sorted:
            ranked.product_idx[ranked.rows < 0] = -1
    else:
        ranked = _take_first_rows(products_QF, rows_QF, scores_QF, num_wanted)
    # the last score is -inf where the index had fewer rows than requested: no search finds more
    return ranked, ranked.scores[:, -1] > scores_QF[:, -1] + _ROUNDING


def _take_first_rows(
    products_QF: np.ndarray, rows_QF: np.ndarray, scores_QF: np.ndarray, num_wanted: int
) -> RankedRows:
    """Keep the first row of each product in each line."""
    queries_Q1, order_QF = np.arange(len(products_QF))[:, None], products_QF.argsort(axis=1, kind="stable")
    sorted_QF = products_QF[queries_Q1, order_QF]
    is_first_QF = np.ones(products_QF.shape, dtype=bool)
    is_first_QF[queries_Q1, order_QF[:, 1:]] = sorted_QF[:, 1:] != sorted_QF[:, :-1]
    is_first_QF &= rows_QF >= 0
    rank_QF = is_first_QF.cumsum(axis=1) - 1
    query, column = (is_first_QF & (rank_QF < num_wanted)).nonzero()
    shape = len(products_QF), num_wanted
    ranked = RankedRows(np.full(shape, -1), np.full(shape, -1), np.full(shape, -np.inf, dtype=np.float32))
    for whole, part in zip(ranked, (products_QF, rows_QF, scores_QF), strict=True):
        whole[query, rank_QF[query, column]] = part[query, column]
    return ranked


def fetch_exactly(vectors_ND: Vectors, rows_C: np.ndarray) -> FetchRows:
    """Return how to fetch the best of some rows (C,) by comparing each."""

    def fetch(query_QD: np.ndarray, num_fetched: int) -> np.ndarray:
        chunk = max(1, _CHUNK_ELEMENTS // len(rows_C))
        parts = [query_QD[start : start + chunk] for start in range(0, len(query_QD), chunk)]
        return np.concatenate([best_rows(part, num_fetched) for part in parts])

    def best_rows(query_QD: np.ndarray, num_fetched: int) -> np.ndarray:
        scores_QC = compute_scores(query_QD, vectors_ND, np.tile(rows_C, (len(query_QD), 1)))
        if num_fetched < len(rows_C):
            positions_QF = np.argpartition(-scores_QC, num_fetched - 1, axis=1)[:, :num_fetched]
        else:
            positions_QF = np.broadcast_to(np.arange(len(rows_C)), scores_QC.shape)
        return rows_C[positions_QF]

    return fetch
