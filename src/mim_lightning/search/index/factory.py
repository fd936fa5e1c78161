"""Build or open a product index: FAISS in a folder, or a Milvus collection at an address (extra `milvus`).

The backends are imported when they are first used.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mim_lightning.artifact_paths import is_address
from mim_lightning.search.index.card import IndexCard
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts
from mim_lightning.search.index.index_type import COARSE, choose_kind
from mim_lightning.search.index.interface import ProductIndex
from mim_lightning.search.index.products import IndexRows, validate_rows
from mim_lightning.search.index.small_vectors import cut_vectors, round_vectors


def create_index(
    vectors_ND: np.ndarray,
    row_product_ids: Sequence[str],
    products: pa.Table,
    settings: IndexSettings,
    facts: ModelFacts,
    place: Path | str,
    extra: Mapping[str, Any] | None = None,
    query_vectors_QD: np.ndarray | None = None,
) -> ProductIndex:
    """Build an index, measure its recall and save it; an existing index is replaced once the new one is complete.

    Args:
        vectors_ND: (N, D) of the model, possibly memory-mapped; a product may have several rows. They are cut to
            `settings.dimension`, and so are the vectors of later additions and queries.
        row_product_ids: (N,) product of each row.
        products: one row per product, `product_id` and any other columns; columns of numbers only become numbers.
        place: folder, or Milvus address (see `is_address`).
        extra: anything the caller wants on the card.
        query_vectors_QD: embedded queries to measure recall with; by default rows of the index with added noise.

    Raises:
        ValueError: rows and products that do not match, too few rows for the index type, or recall below
            `index.min_recall`; nothing is left behind.
    """
    settings.validate_dimension(facts.dimension)
    rows = validate_rows(vectors_ND, row_product_ids, products, facts.dimension)
    rows = _fit_rows(rows, settings, _existing_folder(str(place)))
    arguments = (rows, settings, facts, str(place), dict(extra or {}), query_vectors_QD)
    if is_address(str(place)):
        from mim_lightning.search.index.milvus_index import build_milvus_index

        return build_milvus_index(*arguments)
    from mim_lightning.search.index.faiss_index import build_faiss_index

    return build_faiss_index(*arguments)


def _existing_folder(place: str) -> Path:
    """Return a folder on the disk of an index that need not exist yet."""
    path = Path(tempfile.gettempdir() if is_address(place) else place).absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _fit_rows(rows: IndexRows, settings: IndexSettings, folder: Path) -> IndexRows:
    """Return rows with vectors as the index will have them: cut, rounded or as they are; many are in files."""
    vectors_ND = full = np.asarray(rows.vectors)
    kind, _ = choose_kind(settings, len(full), settings.dimension or full.shape[1])
    if settings.dimension not in (None, full.shape[1]):
        vectors_ND = cut_vectors(vectors_ND, settings.dimension or 0, folder)
    if settings.rescore == "int8" and kind in COARSE:
        vectors_ND = round_vectors(vectors_ND, folder)
    return rows if vectors_ND is full else replace(rows, vectors=vectors_ND, full=full)


def open_index(place: Path | str, expected_fingerprint: str | None = None, verify: bool = False) -> ProductIndex:
    """Open an index; files in a folder are memory-mapped.

    Compared in this order: the card, its fingerprint, sizes of files, checksums of small ones, the header of FAISS,
    shapes and counts of rows. `open_searcher` compares the model and the golden samples.

    Args:
        expected_fingerprint: of the model that will search.
        verify: compare the checksums of all files; by default only those of small files.

    Raises:
        ValueError: no index, a missing or damaged file, or an index of another model.
    """
    if is_address(str(place)):
        from mim_lightning.search.index.milvus_index import open_milvus_index

        return open_milvus_index(str(place), expected_fingerprint)
    from mim_lightning.search.index.faiss_index import open_faiss_index

    return open_faiss_index(Path(place), expected_fingerprint, verify)


def read_index_card(place: Path | str) -> IndexCard:
    """Return the card of an index without opening its files.

    Raises:
        ValueError: no index, or its card is damaged.
    """
    if is_address(str(place)):
        from mim_lightning.search.index.milvus_index import find_index

        return find_index(str(place)).card
    from mim_lightning.search.index.storage import read_card

    return read_card(Path(place))
