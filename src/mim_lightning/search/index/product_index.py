"""The product index: build it once, open it anywhere, ask it for the products nearest to a query.

Embedded catalogues come in from the `build_index` door, queries from `searcher`; products, best first, go out.
Two backends keep the same contract: FAISS in this process (`faiss_index`), and Milvus (`milvus_index`) beyond one
machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mim_lightning.search.index.card import IndexCard
from mim_lightning.search.index.milvus_client import is_address
from mim_lightning.search.index.rows import check_rows
from mim_lightning.search.index.settings import IndexSettings, ModelFacts


@dataclass(frozen=True)
class Found:
    """The best K products of Q queries, best first, equal scores ascending by product id."""

    product_ids: np.ndarray  # (Q, K) object: str, "" where there are fewer
    scores: np.ndarray  # (Q, K) float32 inner product of the best row, -inf where there is none
    vectors: np.ndarray | None = None  # (Q, K, D) float32 of the best row, 0 where there is none; when asked for


class ProductIndex(Protocol):
    """Rows of products, to be searched by inner product; a product with several rows is one hit."""

    @property
    def card(self) -> IndexCard:
        """What the index is, as it is now."""

    def search(
        self, queries_QD: np.ndarray, k: int, where: Mapping[str, Any] | None = None, with_vectors: bool = False
    ) -> Found:
        """Return the best k products of each query, of those that a filter lets through (see `filters`).

        Raises:
            ValueError: queries of another dimension or not finite; a filter that the columns do not fit.
        """

    def products(self, product_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return what is known of products, in the order asked for; ValueError for an unknown one."""

    def vectors_of(self, product_id: str) -> np.ndarray:
        """Return the vectors (rows, D) of a product; ValueError for an unknown one."""

    def add(
        self,
        vectors_ND: np.ndarray,
        row_product_ids: Sequence[str],
        products: pa.Table,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Add products; of one that is known, rows and record are replaced.

        Args:
            extra: what the card's `extra` says from now on, key by key; those that are left out stay as they are.

        Raises:
            ValueError: as `build_index`; or a column that the index does not have, or that holds something else.
        """

    def delete(self, product_ids: Sequence[str]) -> int:
        """Remove products, and return how many there were; unknown ids are passed over."""

    def save(self) -> None:
        """Keep what was added and deleted, all of it or, if this fails, nothing."""


def build_index(
    vectors_ND: np.ndarray,
    row_product_ids: Sequence[str],
    products: pa.Table,
    settings: IndexSettings,
    facts: ModelFacts,
    folder: Path | str,
    extra: Mapping[str, Any] | None = None,
    query_vectors_QD: np.ndarray | None = None,
) -> ProductIndex:
    """Build an index, measure its recall, and save it; an index that is there already is replaced when all is well.

    Args:
        vectors_ND: (N, D), a memory map perhaps; several rows may be of one product.
        row_product_ids: (N,) product of each row.
        products: one row a product, `product_id` and any further columns; those of numbers alone become numbers.
        folder: where to, or the address of a Milvus collection (see `milvus_client.is_address`).
        extra: anything the caller wants on the card.
        query_vectors_QD: embedded queries to measure recall with; left out, rows with noise stand in for them.

    Raises:
        ValueError: rows that do not fit each other, too few rows for the kind, or recall below
            `index.min_recall`; nothing is left behind then.
    """
    rows = check_rows(vectors_ND, row_product_ids, products, facts.dimension)
    arguments = (rows, settings, facts, folder, dict(extra or {}), query_vectors_QD)
    if is_address(str(folder)):
        from mim_lightning.search.index.milvus_build import build_milvus_index

        return build_milvus_index(*arguments)
    from mim_lightning.search.index.faiss_build import build_faiss_index

    return build_faiss_index(*arguments)


def open_index(place: Path | str, expected_fingerprint: str | None = None, verify: bool = False) -> ProductIndex:
    """Open an index for searching; a folder's files are memory-mapped.

    Args:
        expected_fingerprint: of the model that will search.
        verify: read all files to the end and compare checksums; otherwise those of large files are not.

    Raises:
        ValueError: no index there, a file missing or damaged, or another model's: both are named.
    """
    if is_address(str(place)):
        from mim_lightning.search.index.milvus_index import open_milvus_index

        return open_milvus_index(str(place), expected_fingerprint)
    from mim_lightning.search.index.faiss_index import open_faiss_index

    return open_faiss_index(Path(place), expected_fingerprint, verify)
