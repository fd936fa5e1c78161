"""Change segments: append rows to the delta segment, merge it into the base, rebuild what is mostly deleted.

Segments are immutable, so each function returns a new one. Vectors of coarse index types are merged in a file in the
folder of the index, since they may not fit into memory; the next save keeps or removes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np

from mim_lightning.io.atomic import atomic_write
from mim_lightning.search.index.card import Recall, StoredFile
from mim_lightning.search.index.faiss_types import extend_index, set_effort
from mim_lightning.search.index.index_settings import IndexSettings
from mim_lightning.search.index.index_type import BINARY, COARSE, choose_kind, min_rows
from mim_lightning.search.index.products import IndexRows, ProductTable, merge_products
from mim_lightning.search.index.segment import Segment, build_measured_segment, build_segment
from mim_lightning.search.index.small_vectors import Vectors
from mim_lightning.search.index.storage import (
    BASE,
    copy_vectors,
    finalize_file,
    new_path,
    read_into_memory,
    stored_vectors,
)


def append_rows(delta: Segment | None, rows: IndexRows, settings: IndexSettings) -> Segment:
    """Return a delta segment: the live rows of the old one, if there is one, and new rows of other products."""
    new = Segment("flat", None, rows.vectors, rows.product_idx, rows.products, settings)
    parts = [new] if delta is None else [delta, new]
    products, product_idx_N = _live_products(parts)
    vectors_ND = np.concatenate([part.vectors[part.is_live] for part in parts])
    return build_segment("flat", IndexRows(vectors_ND, product_idx_N, products), settings)


def is_mostly_deleted(parts: Sequence[Segment]) -> bool:
    """Return whether more than half of the rows are deleted, but not all."""
    num_rows, num_deleted = sum(len(part.vectors) for part in parts), sum(part.num_deleted for part in parts)
    return num_rows / 2 < num_deleted < num_rows


def has_other_kind(parts: Sequence[Segment]) -> bool:
    """Return whether the base is of another index type than so many rows get."""
    base, num_rows = parts[0], sum(len(part.vectors) - part.num_deleted for part in parts)
    return base.kind == "flat" or choose_kind(base.settings, num_rows, base.vectors.shape[1])[0] != base.kind


def compact(parts: Sequence[Segment], folder: Path) -> tuple[Segment, Recall, str]:
    """Return one segment rebuilt from the live rows, its recall, and the reason for its index type."""
    pairs = [(part.vectors, np.flatnonzero(part.is_live)) for part in parts]
    num_rows, settings = sum(len(rows) for _, rows in pairs), parts[0].settings
    kind, why = choose_kind(settings, num_rows, parts[0].vectors.shape[1])
    if num_rows < min_rows(kind, settings, num_rows):
        kind, why = "flat", f"flat: only {num_rows} rows are left, too few for {kind}"
    files: dict[str, StoredFile] = {}
    if kind in COARSE:
        vectors_ND, files = _write_vectors(folder, pairs, settings.rescore)
    else:
        vectors_ND = np.concatenate([vectors[rows] for vectors, rows in pairs])
    products, product_idx_N = _live_products(parts)
    segment, recall = build_measured_segment(kind, IndexRows(vectors_ND, product_idx_N, products), settings)
    return replace(segment, files=files), recall, why


def merge_segments(base: Segment, delta: Segment, folder: Path) -> Segment:
    """Return one segment with all rows of both, those of the delta inserted into a copy of the base's index."""
    products, positions = _merge_products([base, delta])
    is_deleted_N = ~np.concatenate([base.is_live, delta.is_live])
    index = (
        read_into_memory(folder / base.files["index"].name, base.kind)
        if "index" in base.files
        else (faiss.clone_binary_index if base.kind in BINARY else faiss.clone_index)(base.index)
    )
    extend_index(index, delta.vectors)
    files: dict[str, StoredFile] = {}
    if base.kind in COARSE:
        pairs = [(part.vectors, np.arange(len(part.vectors))) for part in (base, delta)]
        vectors_ND, files = _write_vectors(folder, pairs, base.settings.rescore)
    else:
        vectors_ND = stored_vectors(index)
    set_effort(base.kind, index, base.settings)
    # a deleted row may have lost its product: it takes another's, and is never found
    product_idx_N = np.maximum(np.concatenate(positions), 0).astype(np.int32)
    deleted = is_deleted_N if is_deleted_N.any() else None
    return Segment(base.kind, index, vectors_ND, product_idx_N, products, base.settings, deleted, files)


def _merge_products(parts: Sequence[Segment]) -> tuple[ProductTable, list[np.ndarray]]:
    """Return the products with live rows, and per part the new position (N,) of each row's product, -1 if deleted."""
    products = merge_products(part.products.take(np.flatnonzero(part.has_live_row)) for part in parts)
    return products, [products.find(part.products.ids.to_pylist())[part.product_idx] for part in parts]


def _live_products(parts: Sequence[Segment]) -> tuple[ProductTable, np.ndarray]:
    """Return the products with live rows, and the position of each live row's product."""
    products, positions = _merge_products(parts)
    return products, np.concatenate([idx[part.is_live] for idx, part in zip(positions, parts, strict=True)])


def _write_vectors(
    folder: Path, pairs: Sequence[tuple[Vectors, np.ndarray]], precision: str
) -> tuple[Vectors, dict[str, StoredFile]]:
    folder.mkdir(parents=True, exist_ok=True)
    path = new_path(folder, BASE, "vectors")
    with atomic_write(path) as partial:
        vectors_ND = copy_vectors(partial, pairs, precision)
    return vectors_ND, {"vectors": finalize_file(path)}
