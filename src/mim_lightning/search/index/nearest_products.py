"""From rows to products: the best products of each query, one hit a product however many rows it has.

In: a way to fetch the best rows, and each row's product. Out: products, best first, equal scores in ascending order
of product. Called by `segment`, for an index and for an exact search alike. Scores are computed here and nowhere
else, one pair at a time, so that a row's score does not depend on the kind of index, the other queries or a filter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import faiss
import numpy as np

_ROUNDING = 1e-6  # by so much an index's own score of a unit vector may differ from ours
_CHUNK_ELEMENTS = 2**22  # scores held at once
FetchRows = Callable[[np.ndarray, int], np.ndarray]  # queries (Q, D), F -> rows (Q, F), -1 where there is none


class Ranked(NamedTuple):
    """The best K products of Q queries; -1 and -inf where there are fewer."""

    product_idx: np.ndarray  # (Q, K) int64
    rows: np.ndarray  # (Q, K) int64, the best row of each product
    scores: np.ndarray  # (Q, K) float32


def inner_products(query_QD: np.ndarray, vectors_ND: np.ndarray, rows_QF: np.ndarray) -> np.ndarray:
    """Return the inner product (Q, F) of each query with its rows, -inf for row -1; arrays are contiguous."""
    scores_QF, pointer = np.empty(rows_QF.shape, dtype=np.float32), faiss.swig_ptr
    arrays = pointer(scores_QF), pointer(query_QD), pointer(vectors_ND), pointer(rows_QF)
    faiss.fvec_inner_products_by_idx(*arrays, query_QD.shape[1], *rows_QF.shape)
    return scores_QF


def rank_products(
    query_QD: np.ndarray,
    vectors_ND: np.ndarray,
    product_idx_N: np.ndarray,
    num_wanted: int,
    num_rows: int,
    first_fetch: int,
    is_one_to_one: bool,
    fetch: Callable[[int], FetchRows],
) -> Ranked:
    """Rank products, fetching more rows for the queries whose answer is not certain yet.

    A query is done when its last product scores above the last row that was fetched: whatever was not fetched
    can then neither be a better row of another product nor a tie. Or when there are enough products and the index
    had no more rows to give, or when all rows were fetched.

    Args:
        num_wanted: K, at most the number of products that the rows have.
        num_rows: how many rows may be found; fetching so many means all.
        first_fetch: rows fetched a query, to begin with.
        is_one_to_one: no product has two rows.
        fetch: number of rows -> how to fetch so many; exactly, from some number on.
    """
    num_fetched = min(first_fetch, num_rows)

    def rank(asked_QD: np.ndarray) -> tuple[Ranked, np.ndarray]:
        rows_QF = fetch(num_fetched)(asked_QD, num_fetched)
        scores_QF = inner_products(asked_QD, vectors_ND, rows_QF)
        return _one_hit_a_product(scores_QF, rows_QF, product_idx_N, num_wanted, is_one_to_one)

    found, is_sure = _in_parts(rank, query_QD, num_fetched)
    if is_sure.all():
        return found
    pending = np.flatnonzero(~is_sure)
    while len(pending) and num_fetched < num_rows:
        num_fetched = min(4 * num_fetched, num_rows)
        ranked, is_sure = _in_parts(rank, query_QD[pending], num_fetched)
        for whole, part in zip(found, ranked, strict=True):
            whole[pending] = part
        pending = pending[~is_sure]
    return found


def _in_parts(
    rank: Callable[[np.ndarray], tuple[Ranked, np.ndarray]], query_QD: np.ndarray, num_fetched: int
) -> tuple[Ranked, np.ndarray]:
    """Rank a few queries after the other where very many rows are fetched for each."""
    per_part = max(1, _CHUNK_ELEMENTS // num_fetched)
    if len(query_QD) <= per_part:
        return rank(query_QD)
    parts = [rank(query_QD[start : start + per_part]) for start in range(0, len(query_QD), per_part)]
    ranked = (np.concatenate(arrays) for arrays in zip(*(part for part, _ in parts), strict=True))
    return Ranked(*ranked), np.concatenate([is_sure for _, is_sure in parts])


def _one_hit_a_product(
    scores_QF: np.ndarray, rows_QF: np.ndarray, product_idx_N: np.ndarray, num_wanted: int, is_one_to_one: bool
) -> tuple[Ranked, np.ndarray]:
    """Return the ranking, and for which queries (Q,) no row that was not fetched could change it."""
    products_QF = product_idx_N[rows_QF]  # row -1 takes another's product; its score is -inf
    is_in_order = (scores_QF[:, 1:] < scores_QF[:, :-1]).all()  # and so without ties, and without a row -1 but the last
    if not is_in_order:
        lines_Q1, order_QF = np.arange(len(rows_QF))[:, None], np.lexsort((rows_QF, products_QF, -scores_QF))
        scores_QF, rows_QF, products_QF = (part[lines_Q1, order_QF] for part in (scores_QF, rows_QF, products_QF))
    if is_one_to_one:
        ranked = Ranked(products_QF[:, :num_wanted], rows_QF[:, :num_wanted], scores_QF[:, :num_wanted])
        if not is_in_order:
            ranked.product_idx[ranked.rows < 0] = -1
    else:
        ranked = _gather_firsts(products_QF, rows_QF, scores_QF, num_wanted)
    # the lowest is -inf where there were fewer rows than asked for: no search finds more
    return ranked, ranked.scores[:, -1] > scores_QF[:, -1] + _ROUNDING


def _gather_firsts(products_QF: np.ndarray, rows_QF: np.ndarray, scores_QF: np.ndarray, num_wanted: int) -> Ranked:
    """Keep each product where it stands for the first time in its line."""
    is_first_QF = _first_of_product(products_QF) & (rows_QF >= 0)
    place_QF = is_first_QF.cumsum(axis=1) - 1
    query, column = (is_first_QF & (place_QF < num_wanted)).nonzero()
    target = query, place_QF[query, column]
    ranked = _nothing((len(products_QF), num_wanted))
    for whole, part in zip(ranked, (products_QF, rows_QF, scores_QF), strict=True):
        whole[target] = part[query, column]
    return ranked


def _first_of_product(products_QF: np.ndarray) -> np.ndarray:
    lines_Q1, order_QF = np.arange(len(products_QF))[:, None], products_QF.argsort(axis=1, kind="stable")
    sorted_QF = products_QF[lines_Q1, order_QF]
    is_first_QF = np.ones(products_QF.shape, dtype=bool)
    is_first_QF[lines_Q1, order_QF[:, 1:]] = sorted_QF[:, 1:] != sorted_QF[:, :-1]
    return is_first_QF


def _nothing(shape: tuple[int, int]) -> Ranked:
    return Ranked(np.full(shape, -1), np.full(shape, -1), np.full(shape, -np.inf, dtype=np.float32))


def fetch_exactly(vectors_ND: np.ndarray, rows_C: np.ndarray) -> FetchRows:
    """Return a way to fetch the best of some rows (C,) by comparing each."""

    def fetch(query_QD: np.ndarray, num_fetched: int) -> np.ndarray:
        per_chunk = max(1, _CHUNK_ELEMENTS // len(rows_C))
        parts = [query_QD[start : start + per_chunk] for start in range(0, len(query_QD), per_chunk)]
        return np.concatenate([_best_rows(part, vectors_ND, rows_C, num_fetched) for part in parts])

    return fetch


def _best_rows(query_QD: np.ndarray, vectors_ND: np.ndarray, rows_C: np.ndarray, num_fetched: int) -> np.ndarray:
    scores_QC = inner_products(query_QD, vectors_ND, np.tile(rows_C, (len(query_QD), 1)))
    if num_fetched < len(rows_C):
        places_QF = np.argpartition(-scores_QC, num_fetched - 1, axis=1)[:, :num_fetched]
    else:
        places_QF = np.broadcast_to(np.arange(len(rows_C)), scores_QC.shape)
    return rows_C[places_QF]
