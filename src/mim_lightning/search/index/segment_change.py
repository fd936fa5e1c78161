"""Changing what segments hold: append fresh rows, join fresh to main, build anew from the living.

Segments come in from `faiss_index` and stay as they are, new ones go out. Rows of coarse kinds are put together in a
file of the index's folder, since there may be more of them than memory holds; the next save keeps or removes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mim_lightning.io.atomic import atomic_write
from mim_lightning.search.index.card import Recall, StoredFile
from mim_lightning.search.index.faiss_kinds import copy_index, extend_index, set_effort
from mim_lightning.search.index.files import seal
from mim_lightning.search.index.kind import COARSE, choose_kind, least_rows
from mim_lightning.search.index.products import ProductTable, merge_products
from mim_lightning.search.index.rows import IndexRows
from mim_lightning.search.index.segment import Segment, build_segment
from mim_lightning.search.index.segment_build import build_measured
from mim_lightning.search.index.segment_files import copy_vectors, new_path, read_owned, stored_vectors
from mim_lightning.search.index.settings import IndexSettings


def append_rows(fresh: Segment | None, rows: IndexRows, settings: IndexSettings) -> Segment:
    """Return a fresh segment: the living rows of the old one, if there is one, and new rows of other products."""
    new = Segment("flat", None, rows.vectors, rows.product_idx, rows.products, settings)
    parts = [new] if fresh is None else [fresh, new]
    living = [np.flatnonzero(part.is_living) for part in parts]
    products, product_idx = _renumber(parts)
    vectors_ND = np.concatenate([part.vectors[rows] for part, rows in zip(parts, living, strict=True)])
    product_idx_N = np.concatenate([idx[rows] for idx, rows in zip(product_idx, living, strict=True)])
    return build_segment("flat", vectors_ND, product_idx_N, products, settings)


def is_mostly_dead(parts: Sequence[Segment]) -> bool:
    """Are more than half of the rows dead, and not all?"""
    num_rows, num_dead = sum(len(part.vectors) for part in parts), sum(part.num_dead for part in parts)
    return num_rows / 2 < num_dead < num_rows


def compact(parts: Sequence[Segment], folder: Path) -> tuple[Segment, Recall, str]:
    """Return one segment built anew from the living rows, its recall, and why it is of its kind."""
    living = [np.flatnonzero(part.is_living) for part in parts]
    num_rows, main = sum(map(len, living)), parts[0]
    kind, why = choose_kind(main.settings, num_rows, main.vectors.shape[1])
    if num_rows < least_rows(kind, main.settings, num_rows):
        kind, why = "flat", f"flat: only {num_rows} rows are left, too few for {kind}"
    pairs = [(part.vectors, rows) for part, rows in zip(parts, living, strict=True)]
    files: dict[str, StoredFile] = {}
    if kind in COARSE:
        vectors_ND, files = _copy_beside(folder, pairs)
    else:
        vectors_ND = np.concatenate([vectors[rows] for vectors, rows in pairs])
    products, product_idx = _renumber(parts)
    product_idx_N = np.concatenate([idx[rows] for idx, rows in zip(product_idx, living, strict=True)])
    segment, recall = build_measured(kind, IndexRows(vectors_ND, product_idx_N, products), main.settings)
    return replace(segment, files=files), recall, why


def join(main: Segment, fresh: Segment, folder: Path) -> Segment:
    """Return one segment with the rows of both, those of `fresh` put into a copy of the main one's index."""
    products, product_idx = _renumber([main, fresh])
    is_dead_N = ~np.concatenate([main.is_living, fresh.is_living])
    index = read_owned(folder / main.files["index"].name) if "index" in main.files else copy_index(main.index)
    extend_index(index, fresh.vectors)
    files: dict[str, StoredFile] = {}
    if main.kind in COARSE:
        pairs = [(part.vectors, np.arange(len(part.vectors))) for part in (main, fresh)]
        vectors_ND, files = _copy_beside(folder, pairs)
    else:
        vectors_ND = stored_vectors(index)
    set_effort(main.kind, index, main.settings)
    # the product of a dead row may be gone: the row takes another's, and is never found
    product_idx_N = np.maximum(np.concatenate(product_idx), 0).astype(np.int32)
    dead = is_dead_N if is_dead_N.any() else None
    return Segment(main.kind, index, vectors_ND, product_idx_N, products, main.settings, dead, files)


def _renumber(parts: Sequence[Segment]) -> tuple[ProductTable, list[np.ndarray]]:
    """Return the products that are left, and for each part the new position (N,) of its rows' products, -1 if gone."""
    products = merge_products(part.products.take(np.flatnonzero(part.has_row)) for part in parts)
    return products, [products.find(part.products.ids.to_pylist())[part.product_idx] for part in parts]


def _copy_beside(
    folder: Path, pairs: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, dict[str, StoredFile]]:
    folder.mkdir(parents=True, exist_ok=True)
    path = new_path(folder, "main", "vectors")
    with atomic_write(path) as partial:
        vectors_ND = copy_vectors(partial, pairs)
    return vectors_ND, {"vectors": seal(path)}
