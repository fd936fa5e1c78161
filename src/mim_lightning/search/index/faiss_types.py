"""FAISS indexes of each type: training, filling, search parameters, a copy on GPUs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np

from mim_lightning.search.index.index_settings import IndexSettings
from mim_lightning.search.index.index_type import COARSE, PQ_CENTROIDS, min_rows, num_code_bytes, num_lists

MAX_FETCHED_ON_GPU = 2048  # rows per query, the limit of FAISS's kernels
_TRAINING_ROWS = 64  # per list; FAISS warns below 39
_ROWS_PER_STEP = 10_000  # inserted between two steps of the progress bar
_MIN_ROWS_READ = 2  # for each fetched one


def fill_index(
    kind: str, vectors_ND: np.ndarray, settings: IndexSettings, on_progress: Callable[[int], None] = lambda rows: None
) -> Any:
    """Return a FAISS index of the vectors; `on_progress` receives the number of rows inserted so far.

    Raises:
        ValueError: too few rows for the type.
    """
    index = _make_empty_index(kind, vectors_ND, settings)
    with _num_threads(settings.num_threads):
        if not index.is_trained:
            num_sampled = min(len(vectors_ND), max(_TRAINING_ROWS * index.nlist, _TRAINING_ROWS * PQ_CENTROIDS))
            rows = np.random.default_rng(settings.seed).choice(len(vectors_ND), num_sampled, replace=False)
            index.train(np.ascontiguousarray(vectors_ND[np.sort(rows)], dtype=np.float32))
        extend_index(index, vectors_ND, on_progress)
    return index


def extend_index(index: Any, vectors_ND: np.ndarray, on_progress: Callable[[int], None] = lambda rows: None) -> None:
    """Insert vectors into an index that owns its memory; FAISS crashes the process if it is memory-mapped."""
    for start in range(0, len(vectors_ND), _ROWS_PER_STEP):
        index.add(np.ascontiguousarray(vectors_ND[start : start + _ROWS_PER_STEP], dtype=np.float32))
        on_progress(min(start + _ROWS_PER_STEP, len(vectors_ND)))


def _make_empty_index(kind: str, vectors_ND: np.ndarray, settings: IndexSettings) -> Any:
    num_rows, dimension = vectors_ND.shape
    if kind == "flat":
        return faiss.IndexFlatIP(dimension)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, settings.hnsw_m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = settings.ef_construction
        index.hnsw.rng = faiss.RandomGenerator(settings.seed)
        return index
    lists, coarse = num_lists(settings, num_rows), faiss.IndexFlatIP(dimension)
    if num_rows < (least := min_rows(kind, settings, num_rows)):
        raise ValueError(f"index.kind={kind}: needs at least {least} rows, there are {num_rows}; choose flat")
    if kind == "sq8":
        args: tuple[int, ...] = (faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexIVFScalarQuantizer(coarse, dimension, lists, *args)
    else:
        args = (num_code_bytes(settings, dimension), 8, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexIVFPQ(coarse, dimension, lists, *args)
        index.pq.cp.seed, index.pq.cp.min_points_per_centroid = settings.seed, 1
    index.cp.seed, index.cp.min_points_per_centroid = settings.seed, 1
    return index


def search_parameters(
    kind: str, settings: IndexSettings, num_rows: int, num_allowed: int, num_fetched: int, selector: Any
) -> Any:
    """Return FAISS's search parameters: wider the fewer rows may be found, or the more are fetched.

    Args:
        num_rows: in the index.
        num_allowed: rows that may be found.
        selector: of these rows, None for all.
    """
    widening = num_rows / num_allowed
    if kind == "flat":
        return faiss.SearchParameters(sel=selector)
    if kind == "hnsw":
        ef_search = max(num_fetched, math.ceil(settings.ef_search * widening))
        return faiss.SearchParametersHNSW(sel=selector, efSearch=ef_search)
    lists = num_lists(settings, num_rows)
    lists_to_fill = _MIN_ROWS_READ * num_fetched * widening / num_rows * lists  # that contain enough allowed rows
    nprobe = min(lists, math.ceil(max(settings.nprobe * widening, lists_to_fill)))
    return faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)


def set_effort(kind: str, index: Any, settings: IndexSettings) -> None:
    """Set how wide an index searches without search parameters."""
    if kind == "hnsw":
        index.hnsw.efSearch = settings.ef_search
    elif kind in COARSE:
        index.nprobe = settings.nprobe


def copy_to_gpu(kind: str, index: Any) -> Any:
    """Return a copy of the index on all GPUs; None without a GPU, without FAISS's GPU build, or for a graph.

    Searches that leave rows out run on the CPU too: FAISS's GPU kernels have no selectors.
    """
    if kind == "hnsw" or not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return None
    return faiss.index_cpu_to_all_gpus(index)


@contextmanager
def _num_threads(num_threads: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(num_threads or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
