"""Measure the recall of an approximate index against exact search, and widen its search until recall suffices."""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np

from mim_lightning.display.progress import ProgressMeter
from mim_lightning.search.index.card import Recall
from mim_lightning.search.index.index_settings import RECALL_K, IndexSettings
from mim_lightning.search.index.index_type import BINARY, COARSE, GRAPHS, scale_effort
from mim_lightning.search.index.product_ranking import FetchRows, fetch_exactly, rank_products
from mim_lightning.search.index.products import IndexRows
from mim_lightning.search.index.small_vectors import Vectors

NOISE = 0.5  # length of the noise added to a row, relative to the row's; their cosine is then about 0.89
_TOLERANCE = 1e-6  # scores of another engine differ by rounding
_MAX_FETCHED = 2**12  # rows per query
_BLOCK_ROWS = 2**18  # compared at once
EXACT = Recall(RECALL_K, 1.0, 0, "every row is compared: exact")
FindScores = Callable[[np.ndarray, int], np.ndarray]  # queries (Q, D), K -> scores (Q, K) of what the index finds


def tune_effort(
    kind: str,
    rows: IndexRows,
    settings: IndexSettings,
    given_QD: np.ndarray | None,
    search_with: Callable[[IndexSettings], FindScores],
) -> tuple[IndexSettings, Recall]:
    """Return settings that search wide enough for `min_recall`, and the recall measured with them.

    The search is widened while recall is too low and `scale_effort` allows it; the recall may still be too low then.

    Args:
        given_QD: queries to measure with, if there are any.
        search_with: settings -> how to search the index with them; the last call is with the returned settings.
    """
    if kind == "flat":
        return settings, EXACT
    with ProgressMeter(None, verb="", label="measuring recall"):
        query_QD, how = make_queries(rows.vectors, settings, given_QD)
        true_QK = compute_true_scores(query_QD, rows.vectors, rows.product_idx)
        while True:
            recall = measure_recall(query_QD, how, true_QK, search_with(settings))
            wider = scale_effort(kind, settings, len(rows.vectors))
            if recall.value >= settings.min_recall or wider is None:
                return settings, recall
            settings = wider


def validate_recall(recall: Recall, settings: IndexSettings, kind: str) -> None:
    """Raise ValueError if recall is below `min_recall`."""
    if recall.value < settings.min_recall:
        # not index.nprobe: all lists are read by then
        keys = ["index.hnsw_m or index.ef_construction"] if kind in GRAPHS else []
        keys += ["index.pq_m"] if kind == "ivf_pq" else []
        keys += ["index.rerank"] if kind in COARSE else []
        keys += ["dimension"] if kind in BINARY else []
        raise ValueError(
            f"index.kind={kind}: recall@{recall.k} is {recall.value:.4f}, below "
            f"index.min_recall={settings.min_recall}; raise {' or '.join(keys)}, or choose another kind"
        )


def describe_effort(initial: IndexSettings, final: IndexSettings) -> str:
    """Return which settings were raised to reach the recall, to follow the reason for the kind; empty if none."""
    raised = [
        f"; index.{key} raised from {getattr(initial, key)} to {getattr(final, key)} for recall"
        for key in ("ef_search", "nprobe", "rerank")
        if getattr(initial, key) != getattr(final, key)
    ]
    return "".join(raised)


def make_queries(
    vectors_ND: Vectors, settings: IndexSettings, given_QD: np.ndarray | None = None
) -> tuple[np.ndarray, str]:
    """Return queries (Q, D) to measure recall with, and how they were made.

    Args:
        given_QD: embedded queries of the kind that the index will get; at most `recall_queries` are used.
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
    noisy_QD = query_QD + NOISE * lengths_Q * noise_QD
    return noisy_QD, f"{num_queries:,} rows of the index, moved by {NOISE} of their length"


def compute_true_scores(
    query_QD: np.ndarray, vectors_ND: Vectors, product_idx_N: np.ndarray, num_wanted: int = RECALL_K
) -> np.ndarray:
    """Return the scores (Q, K) of the best products by comparing every row; K is at most the number of products."""
    num_rows, num_products = len(vectors_ND), len(np.unique(product_idx_N))

    def fetch(num_fetched: int) -> FetchRows:
        if num_fetched > min(_MAX_FETCHED, num_rows - 1):
            return fetch_exactly(vectors_ND, np.arange(num_rows))
        return lambda query, count: _find_nearest(query, vectors_ND, count)

    keep = min(num_wanted, num_products)
    return rank_products(query_QD, vectors_ND, product_idx_N, keep, num_rows, num_products, fetch).scores


def _find_nearest(query_QD: np.ndarray, vectors_ND: Vectors, num_wanted: int) -> np.ndarray:
    """Return the rows (Q, K) of the highest inner products, by blocks of rows: the vectors may not fit into memory."""
    scores_QK: np.ndarray = np.empty((len(query_QD), 0), np.float32)
    rows_QK: np.ndarray = np.empty((len(query_QD), 0), np.int64)
    for start in range(0, len(vectors_ND), _BLOCK_ROWS):
        block = vectors_ND[start : start + _BLOCK_ROWS]
        found = faiss.knn(query_QD, block, min(num_wanted, len(block)), faiss.METRIC_INNER_PRODUCT)
        scores_QK = np.concatenate([scores_QK, found[0]], axis=1)
        rows_QK = np.concatenate([rows_QK, found[1] + start], axis=1)
        if scores_QK.shape[1] > num_wanted:
            kept = np.argpartition(-scores_QK, num_wanted - 1, axis=1)[:, :num_wanted]
            scores_QK, rows_QK = (np.take_along_axis(part, kept, axis=1) for part in (scores_QK, rows_QK))
    return rows_QK


def measure_full_recall(
    rows: IndexRows,
    settings: IndexSettings,
    given_QD: np.ndarray | None,
    find_products: Callable[[np.ndarray, int], np.ndarray],
) -> Recall | None:
    """Return which fraction of the best products by the full vectors an index of smaller ones finds; None: it has all.

    Args:
        find_products: full queries (Q, E), K -> ids (Q, K) that the index finds, "" where there are fewer.
    """
    if rows.full is None:
        return None
    query_QE, how = make_queries(rows.full, settings, given_QD)
    true_QK = compute_true_scores(query_QE, rows.full, rows.product_idx)
    found_QK = find_products(query_QE, true_QK.shape[1])
    by_product_N = rows.product_idx.argsort(kind="stable")
    starts_P = np.searchsorted(rows.product_idx[by_product_N], np.arange(len(rows.products) + 1))
    product_idx_QK = np.where(found_QK == "", -1, rows.products.find(found_QK.ravel().tolist()).reshape(found_QK.shape))
    num_found = 0
    for query_E, least, products_K in zip(query_QE, true_QK[:, -1], product_idx_QK, strict=True):
        rows_of = [by_product_N[starts_P[idx] : starts_P[idx + 1]] for idx in products_K if idx >= 0]
        num_found += sum((rows.full[found] @ query_E).max() >= least - _TOLERANCE for found in rows_of)
    return Recall(true_QK.shape[1], num_found / true_QK.size, len(query_QE), how)


def measure_recall(query_QD: np.ndarray, how: str, true_QK: np.ndarray, search: FindScores) -> Recall:
    """Return the fraction of found products that score no less than the last true one: any of equals will do.

    Args:
        true_QK: scores of the true best, descending.
    """
    num_wanted = true_QK.shape[1]
    found_QK = search(query_QD, num_wanted)
    value = float((found_QK >= true_QK[:, -1:] - _TOLERANCE).mean())
    return Recall(num_wanted, value, len(query_QD), how)
