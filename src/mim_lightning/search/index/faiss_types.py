"""FAISS indexes of each type: training, filling, search parameters, a copy on GPUs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np

from mim_lightning.search.index.index_settings import IndexSettings
from mim_lightning.search.index.index_type import (
    GRAPHS,
    LISTS,
    PQ_CENTROIDS,
    min_rows,
    num_code_bytes,
    num_lists,
)
from mim_lightning.search.index.small_vectors import Vectors, encode_signs

MAX_FETCHED_ON_GPU = 2048  # rows per query, the limit of FAISS's kernels
_TRAINING_ROWS = 64  # per list; FAISS warns below 39
_ROWS_PER_STEP = 10_000  # inserted between two steps of the progress bar
_MIN_ROWS_READ = 2  # for each fetched one


def fill_index(
    kind: str, vectors_ND: Vectors, settings: IndexSettings, on_progress: Callable[[int], None] = lambda rows: None
) -> Any:
    """Return a FAISS index of the vectors; `on_progress` receives the number of rows inserted so far.

    Raises:
        ValueError: too few rows for the type.
    """
    index = _make_empty_index(kind, vectors_ND, settings)
    with _num_threads(settings.num_threads):
        if not index.is_trained:
            num_centroids = max(getattr(index, "nlist", 0), PQ_CENTROIDS)
            num_sampled = min(len(vectors_ND), _TRAINING_ROWS * num_centroids)
            rows = np.random.default_rng(settings.seed).choice(len(vectors_ND), num_sampled, replace=False)
            index.train(to_codes(index, vectors_ND[np.sort(rows)]))
        extend_index(index, vectors_ND, on_progress)
    return index


def extend_index(index: Any, vectors_ND: Vectors, on_progress: Callable[[int], None] = lambda rows: None) -> None:
    """Insert vectors into an index that owns its memory; FAISS crashes the process if it is memory-mapped."""
    for start in range(0, len(vectors_ND), _ROWS_PER_STEP):
        index.add(to_codes(index, vectors_ND[start : start + _ROWS_PER_STEP]))
        on_progress(min(start + _ROWS_PER_STEP, len(vectors_ND)))


def to_codes(index: Any, vectors_ND: Vectors) -> np.ndarray:
    """Return vectors as an index takes them: float32, or bits."""
    if isinstance(index, faiss.IndexBinary):
        return encode_signs(vectors_ND)
    return np.ascontiguousarray(vectors_ND, dtype=np.float32)


def _make_empty_index(kind: str, vectors_ND: Vectors, settings: IndexSettings) -> Any:
    num_rows, dimension = vectors_ND.shape
    if kind == "flat":
        return faiss.IndexFlatIP(dimension)
    sq8 = faiss.ScalarQuantizer.QT_8bit
    if kind == "int8_flat":
        return faiss.IndexScalarQuantizer(dimension, sq8, faiss.METRIC_INNER_PRODUCT)
    if kind in GRAPHS:
        m, metric = settings.hnsw_m, faiss.METRIC_INNER_PRODUCT
        is_whole = kind == "hnsw"
        index = faiss.IndexHNSWFlat(dimension, m, metric) if is_whole else faiss.IndexHNSWSQ(dimension, sq8, m, metric)
        index.hnsw.efConstruction = settings.ef_construction
        index.hnsw.rng = faiss.RandomGenerator(settings.seed)
        return index
    num_bits = 8 * -(-dimension // 8)
    if kind == "binary_flat":
        return faiss.IndexBinaryFlat(num_bits)
    lists, coarse = num_lists(settings, num_rows), faiss.IndexFlatIP(dimension)
    if num_rows < (least := min_rows(kind, settings, num_rows)):
        raise ValueError(f"index.kind={kind}: needs at least {least} rows, there are {num_rows}; choose flat")
    if kind == "binary_ivf":
        index = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(num_bits), num_bits, lists)
    elif kind == "sq8":
        args: tuple[int, ...] = (sq8, faiss.METRIC_INNER_PRODUCT)
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
    """Return FAISS's search parameters: wider the fewer rows may be found, or the more are fetched. None: none.

    Args:
        num_rows: in the index.
        num_allowed: rows that may be found.
        selector: of these rows, None for all.
    """
    widening = num_rows / num_allowed
    if kind in ("flat", "int8_flat"):
        return faiss.SearchParameters(sel=selector)
    if kind in GRAPHS:
        ef_search = max(num_fetched, math.ceil(settings.ef_search * widening))
        return faiss.SearchParametersHNSW(sel=selector, efSearch=ef_search)
    if kind == "binary_flat":
        return None
    lists = num_lists(settings, num_rows)
    lists_to_fill = _MIN_ROWS_READ * num_fetched * widening / num_rows * lists  # that contain enough allowed rows
    nprobe = min(lists, math.ceil(max(settings.nprobe * widening, lists_to_fill)))
    return faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)


def set_effort(kind: str, index: Any, settings: IndexSettings) -> None:
    """Set how wide an index searches without search parameters."""
    if kind in GRAPHS:
        index.hnsw.efSearch = settings.ef_search
    elif kind in LISTS:
        index.nprobe = settings.nprobe


def copy_to_gpu(kind: str, index: Any) -> Any:
    """Return a copy of the index on all GPUs; None without a GPU, without FAISS's GPU build, or for another type.

    Searches that leave rows out run on the CPU too: FAISS's GPU kernels have no selectors.
    """
    if kind not in ("flat", "ivf_pq", "sq8") or not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
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
