"""What each size of vectors is worth: indexes of many widths, precisions and types, built, searched and timed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa

from mim_lightning.search.index.factory import create_index
from mim_lightning.search.index.index_settings import FAMILIES, IndexSettings, ModelFacts
from mim_lightning.search.index.interface import ProductIndex

FindKeys = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # queries (Q, D), K -> keys, scores (Q, K)
_TIMED_QUERIES, _MIN_SECONDS = 200, 0.2
_NOISE = 0.5  # length of what is added to a row of the catalog to make another


@dataclass(frozen=True)
class MeasuredIndex:
    """An index that was built, and what it took."""

    kind: str
    find: FindKeys
    memory_bytes: float  # of a product, while it is searched
    disk_bytes: float
    recall: float | None  # of the best ten by the whole vectors; None: every row of them is compared


def build_temporary(vectors_ND: np.ndarray, product_keys_N: np.ndarray, settings: IndexSettings) -> MeasuredIndex:
    """Build an index of a gallery, whose products are named by their keys, and return how to search it."""
    index = _build(vectors_ND, product_keys_N, settings)
    rows_of_product = index.card.num_rows / index.card.num_products

    def find(query_QD: np.ndarray, num_wanted: int) -> tuple[np.ndarray, np.ndarray]:
        found = index.search(query_QD, num_wanted)
        keys = np.array([[int(key) if key else -1 for key in ids] for ids in found.product_ids], dtype=np.int64)
        return keys, found.scores

    card = index.card
    recall = card.full_recall or (card.recall if card.recall.num_queries else None)
    return MeasuredIndex(
        kind=card.kind,
        find=find,
        memory_bytes=rows_of_product * card.memory_bytes_per_row,
        disk_bytes=rows_of_product * card.disk_bytes_per_row,
        recall=None if recall is None else recall.value,
    )


def measure_speed(vectors_ND: np.ndarray, query_QD: np.ndarray, settings: IndexSettings, k: int = 10) -> float:
    """Return how many queries a second an index answers, one at a time."""
    index = _build(vectors_ND, np.arange(len(vectors_ND)), settings)
    queries = [query_QD[row : row + 1] for row in range(min(len(query_QD), _TIMED_QUERIES))]
    index.search(queries[0], k)
    num_answered, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < _MIN_SECONDS:
        index.search(queries[num_answered % len(queries)], k)
        num_answered += 1
    return num_answered / seconds


def make_rows(vectors_ND: np.ndarray, num_rows: int, seed: int = 0) -> np.ndarray:
    """Return a larger catalog: rows of this one at random, each moved by half its length, at unit length."""
    generator = np.random.default_rng(seed)
    rows_ND = vectors_ND[generator.integers(len(vectors_ND), size=num_rows)].astype(np.float32)
    noise_ND = generator.standard_normal(rows_ND.shape, dtype=np.float32)
    rows_ND += _NOISE * noise_ND / np.linalg.norm(noise_ND, axis=1, keepdims=True)
    return rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)


def _build(vectors_ND: np.ndarray, keys_N: np.ndarray, settings: IndexSettings) -> ProductIndex:
    ids = [str(key) for key in keys_N.tolist()]
    products = pa.table({"product_id": sorted({*ids})})
    facts = ModelFacts("measured", "measured", vectors_ND.shape[1])
    # an open index outlives its files; the table names its type
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        return create_index(vectors_ND, ids, products, settings, facts, Path(folder))


def all_settings(
    widths: Sequence[int | None], precisions: Sequence[str], kinds: Sequence[str], rerank: int = 10
) -> list[IndexSettings]:
    """Return the settings of each width, precision and kind of index that there is.

    Raises:
        ValueError: no precision has the kind.
    """
    found = [
        IndexSettings(dimension=width, precision=precision, kind=kind, rerank=rerank, min_recall=0.0, num_threads=1)
        for width in widths
        for precision in precisions
        for kind in kinds
        if kind in FAMILIES.get(precision, {})
    ]
    if not found:
        raise ValueError(f"--kinds {','.join(kinds)}: no such type with --precisions {','.join(precisions)}")
    return found
