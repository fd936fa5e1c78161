"""The interface of a product index, which every backend implements, and the result of a search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mim_lightning.search.index.card import IndexCard


@dataclass(frozen=True)
class IndexHits:
    """The best K products of Q queries, best first; equal scores are in ascending order of product id."""

    product_ids: np.ndarray  # (Q, K) object: str, "" where there are fewer
    scores: np.ndarray  # (Q, K) float32 inner product of the best row, -inf where there is none
    vectors: np.ndarray | None = None  # (Q, K, D) float32 of the best row, 0 where there is none; if requested


class ProductIndex(Protocol):
    """Rows of products, searched by inner product; a product with several rows is one hit."""

    @property
    def card(self) -> IndexCard:
        """The current card of the index."""

    def search(
        self, queries_QD: np.ndarray, k: int, filter: Mapping[str, Any] | None = None, with_vectors: bool = False
    ) -> IndexHits:
        """Return the best k products of each query among those that pass a filter (see `filters`).

        Queries have the dimension of the index, or that of the model's vectors, and are cut then.

        Raises:
            ValueError: queries of another dimension or not finite; a filter that does not fit the columns.
        """

    def products(self, product_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the records of products in the given order; ValueError for an unknown product."""

    def vectors_of(self, product_id: str) -> np.ndarray:
        """Return the vectors (rows, D) of a product; ValueError for an unknown product."""

    def add(
        self,
        vectors_ND: np.ndarray,
        row_product_ids: Sequence[str],
        products: pa.Table,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Add products; rows and record of a known product are replaced. Vectors are cut as those of the index were.

        Args:
            extra: new values for keys of the card's `extra`; other keys keep theirs.

        Raises:
            ValueError: as `factory.create_index`; or a column that the index does not have, or of another type.
        """

    def set_extra(self, extra: Mapping[str, Any]) -> None:
        """Set keys of the card's `extra`; other keys keep their values."""

    def delete(self, product_ids: Sequence[str]) -> int:
        """Delete products and return how many there were; unknown ids are ignored."""

    def save(self) -> None:
        """Store all additions and deletions, or none of them if this fails."""


def validate_queries(queries_QD: np.ndarray, k: int, dimension: int) -> np.ndarray:
    """Return queries as contiguous float32 (Q, D).

    Raises:
        ValueError: another shape or dimension, a value that is not finite, k below 1.
    """
    query_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
    if query_QD.ndim != 2 or query_QD.shape[1] != dimension:
        raise ValueError(f"queries have shape {query_QD.shape}, the index needs (number of queries, {dimension})")
    if k < 1:
        raise ValueError(f"k={k}: must be at least 1")
    if not math.isfinite(query_QD.sum()) and not np.isfinite(query_QD).all():
        raise ValueError("a query vector is not finite")
    return query_QD
