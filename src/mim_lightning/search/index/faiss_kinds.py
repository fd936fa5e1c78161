"""FAISS indexes of each kind: training, filling, search parameters, a GPU.

Vectors and settings come in from `segment` and `segment_change`, a filled FAISS index goes out, and what its search
is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np

from mim_lightning.search.index.kind import COARSE, PQ_CENTROIDS, least_rows, num_code_bytes, num_lists
from mim_lightning.search.index.settings import IndexSettings

_TRAINING_ROWS = 64  # a list; FAISS asks for 39 or more
_FILL_ROWS = 10_000  # put in at once, between two steps of the progress bar
_SPARE_ROWS = 2  # read for each that is fetched, at least
_GPU_ROWS = 2048  # a query; more are refused by FAISS's kernels


def fill_index(
    kind: str, vectors_ND: np.ndarray, settings: IndexSettings, on_progress: Callable[[int], None] = lambda rows: None
) -> Any:
    """Return a FAISS index of the vectors; `on_progress` is told the number of rows put in so far.

    Raises:
        ValueError: too few rows for the kind.
    """
    index = _empty_index(kind, vectors_ND, settings)
    with _threads(settings.num_threads):
        if not index.is_trained:
            _train(index, vectors_ND, settings)
        extend_index(index, vectors_ND, on_progress)
    return index


def extend_index(index: Any, vectors_ND: np.ndarray, on_progress: Callable[[int], None] = lambda rows: None) -> None:
    """Put vectors into an index that owns its memory; FAISS ends the process over one that is memory-mapped."""
    for start in range(0, len(vectors_ND), _FILL_ROWS):
        index.add(np.ascontiguousarray(vectors_ND[start : start + _FILL_ROWS], dtype=np.float32))
        on_progress(min(start + _FILL_ROWS, len(vectors_ND)))


def copy_index(index: Any) -> Any:
    """Return a copy, in memory of its own, of an index that owns its memory."""
    return faiss.clone_index(index)


def _empty_index(kind: str, vectors_ND: np.ndarray, settings: IndexSettings) -> Any:
    num_rows, dimension = vectors_ND.shape
    if kind == "flat":
        return faiss.IndexFlatIP(dimension)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, settings.hnsw_m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = settings.ef_construction
        index.hnsw.rng = faiss.RandomGenerator(settings.seed)
        return index
    lists, coarse = num_lists(settings, num_rows), faiss.IndexFlatIP(dimension)
    if num_rows < least_rows(kind, settings, num_rows):
        least = least_rows(kind, settings, num_rows)
        raise ValueError(f"index.kind={kind}: needs {least} rows or more, there are {num_rows}; take flat")
    if kind == "sq8":
        args: tuple[int, ...] = (faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexIVFScalarQuantizer(coarse, dimension, lists, *args)
    else:
        args = (num_code_bytes(settings, dimension), 8, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexIVFPQ(coarse, dimension, lists, *args)
        index.pq.cp.seed, index.pq.cp.min_points_per_centroid = settings.seed, 1
    index.cp.seed, index.cp.min_points_per_centroid = settings.seed, 1
    return index


def _train(index: Any, vectors_ND: np.ndarray, settings: IndexSettings) -> None:
    num_sampled = min(len(vectors_ND), max(_TRAINING_ROWS * index.nlist, _TRAINING_ROWS * PQ_CENTROIDS))
    rows = np.random.default_rng(settings.seed).choice(len(vectors_ND), num_sampled, replace=False)
    index.train(np.ascontiguousarray(vectors_ND[np.sort(rows)], dtype=np.float32))


def search_parameters(
    kind: str, settings: IndexSettings, num_rows: int, num_allowed: int, num_fetched: int, selector: Any
) -> Any:
    """Return what FAISS's search is told besides the queries: wider where it may find less, or is asked for more.

    Args:
        num_rows: in the index.
        num_allowed: how many of them may be found.
        selector: the same for FAISS, None for all.
    """
    widening = num_rows / num_allowed
    if kind == "flat":
        return faiss.SearchParameters(sel=selector)
    if kind == "hnsw":
        return faiss.SearchParametersHNSW(
            sel=selector, efSearch=max(num_fetched, math.ceil(settings.ef_search * widening))
        )
    lists = num_lists(settings, num_rows)
    holding = _SPARE_ROWS * num_fetched * widening / num_rows * lists  # lists that hold so many rows to choose from
    nprobe = min(lists, math.ceil(max(settings.nprobe * widening, holding)))
    return faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)


def set_effort(kind: str, index: Any, settings: IndexSettings) -> None:
    """Tell an index how wide to search where nothing else is said."""
    if kind == "hnsw":
        index.hnsw.efSearch = settings.ef_search
    elif kind in COARSE:
        index.nprobe = settings.nprobe


def to_gpu(kind: str, index: Any) -> Any:
    """Return a copy of the index on the GPU, or None: FAISS was built without, there is none, or not for this kind.

    Graphs are searched by the CPU, and so is whatever leaves rows out: FAISS's GPU kernels know no selectors.
    """
    if kind == "hnsw" or not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return None
    return faiss.index_cpu_to_all_gpus(index)


def fits_gpu(num_fetched: int) -> bool:
    return num_fetched <= _GPU_ROWS


@contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(num_threads or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
