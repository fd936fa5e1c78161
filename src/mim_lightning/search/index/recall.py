"""How much of the truth an approximate index finds, and how wide it must search to find as much as was asked for.

Rows, settings and a way to search with them come in, a Recall and the settings that reached it go out. Both backends
call it while they build.
"""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np

from mim_lightning.search.index.card import Recall
from mim_lightning.search.index.kind import widen
from mim_lightning.search.index.nearest_products import FetchRows, fetch_exactly, rank_products
from mim_lightning.search.index.progress import progress_bar
from mim_lightning.search.index.rows import IndexRows
from mim_lightning.search.index.settings import RECALL_K, IndexSettings

NOISE = 0.5  # length of what is added to a row, as a share of the row's own; the cosine with it is then about 0.89
_TOLERANCE = 1e-6  # scores of another engine differ by rounding
_MOST_FETCHED = 2**12  # rows a query
EXACT = Recall(RECALL_K, 1.0, 0, "every row is compared: exact")
FindScores = Callable[[np.ndarray, int], np.ndarray]  # queries (Q, D), K -> scores (Q, K) of what the index finds


def reach_recall(
    kind: str,
    rows: IndexRows,
    settings: IndexSettings,
    given_QD: np.ndarray | None,
    search_with: Callable[[IndexSettings], FindScores],
) -> tuple[IndexSettings, Recall]:
    """Return settings that search wide enough for `min_recall`, and the recall that was measured with them.

    They are widened as long as the recall stays below and wider is worth an index (see `kind.widen`); where that ends
    too soon, the recall is what it is.

    Args:
        given_QD: queries to measure with, if there are some.
        search_with: settings -> how the index that was filled is searched with them; the last call is with those
            that are returned.
    """
    if kind == "flat":
        return settings, EXACT
    with progress_bar("measuring recall", None):
        query_QD, how = make_queries(rows.vectors, settings, given_QD)
        true_QK = true_scores(query_QD, rows.vectors, rows.product_idx)
        used = settings
        while True:
            recall = measure_recall(query_QD, how, true_QK, search_with(used))
            wider = widen(kind, used, len(rows.vectors))
            if recall.value >= settings.min_recall or wider is None:
                return used, recall
            used = wider


def refuse_below(recall: Recall, settings: IndexSettings, kind: str) -> None:
    """Raise ValueError if too little of the truth is found."""
    if recall.value < settings.min_recall:
        keys = "index.hnsw_m or index.ef_construction" if kind == "hnsw" else "index.pq_m"
        raise ValueError(
            f"index.kind={kind}: recall@{recall.k} is {recall.value:.4f}, index.min_recall asks for "
            f"{settings.min_recall}; raise {keys}, or take another kind"
        )


def describe_effort(asked: IndexSettings, used: IndexSettings) -> str:
    """Return what was raised to reach the recall, to be told behind the reason for the kind; empty if nothing was."""
    raised = [
        f"index.{key} raised from {getattr(asked, key)} to {getattr(used, key)} for recall"
        for key in ("ef_search", "nprobe", "rerank")
        if getattr(asked, key) != getattr(used, key)
    ]
    return "".join(f"; {text}" for text in raised)


def make_queries(
    vectors_ND: np.ndarray, settings: IndexSettings, given_QD: np.ndarray | None = None
) -> tuple[np.ndarray, str]:
    """Return queries (Q, D) to measure recall with, and how they were made.

    Args:
        given_QD: embedded queries of the kind that the index will be asked; at most `recall_queries` are used.
    """
    generator = np.random.default_rng(settings.seed)
    source = vectors_ND if given_QD is None else given_QD
    num_queries = min(settings.recall_queries, len(source))
    rows = np.sort(generator.choice(len(source), num_queries, replace=False))
    query_QD = np.ascontiguousarray(source[rows], dtype=np.float32)
    if given_QD is not None:
        return query_QD, f"{num_queries:,} of {len(given_QD):,} given queries"
    noise_QD = generator.standard_normal(query_QD.shape, dtype=np.float32)
    lengths_Q = np.linalg.norm(query_QD, axis=1, keepdims=True) / np.linalg.norm(noise_QD, axis=1, keepdims=True)
    return (
        query_QD + NOISE * lengths_Q * noise_QD,
        f"{num_queries:,} rows of the index, moved by {NOISE} of their length",
    )


def true_scores(
    query_QD: np.ndarray, vectors_ND: np.ndarray, product_idx_N: np.ndarray, num_wanted: int = RECALL_K
) -> np.ndarray:
    """Return the scores (Q, K) of the best products, found by comparing every row; K is at most their number."""
    num_rows, num_products = len(vectors_ND), len(np.unique(product_idx_N))

    def fetch(num_fetched: int) -> FetchRows:
        if num_fetched > min(_MOST_FETCHED, num_rows - 1):
            return fetch_exactly(vectors_ND, np.arange(num_rows))
        return lambda query, count: faiss.knn(query, vectors_ND, count, faiss.METRIC_INNER_PRODUCT)[1]

    keep = min(num_wanted, num_products)
    first = keep + 1 + keep * num_rows // num_products
    is_one_to_one = num_rows == num_products
    return rank_products(query_QD, vectors_ND, product_idx_N, keep, num_rows, first, is_one_to_one, fetch).scores


def measure_recall(query_QD: np.ndarray, how: str, true_QK: np.ndarray, search: FindScores) -> Recall:
    """Return how many of the products found score no less than the last true one: of equals, any will do.

    Args:
        true_QK: scores of the true best, descending.
    """
    num_wanted = true_QK.shape[1]
    found_QK = search(query_QD, num_wanted)
    value = float((found_QK >= true_QK[:, -1:] - _TOLERANCE).mean())
    return Recall(num_wanted, value, len(query_QD), how)
