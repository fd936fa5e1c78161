"""What an index is built of: vectors, the product of each, and the products' table, checked against each other.

Arrays, ids and a table come in from `build_index` and `ProductIndex.add`, IndexRows go out to both backends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mim_lightning.search.index.products import ProductTable, type_products

_CHECKED_ROWS = 2**16  # at once: vectors may lie in a file larger than memory


@dataclass(frozen=True)
class IndexRows:
    """N rows of P products; every product has one or more."""

    vectors: np.ndarray  # (N, D) float32, contiguous; a memory map stays one
    product_idx: np.ndarray  # (N,) int32, positions in `products`
    products: ProductTable


def check_rows(
    vectors_ND: np.ndarray,
    row_product_ids: Sequence[str],
    products: pa.Table,
    dimension: int,
    like: Mapping[str, str] | None = None,
) -> IndexRows:
    """Return rows that fit each other; products without a row are left out, since no search could find them.

    Args:
        like: kinds of the columns of an index that the rows are added to.

    Raises:
        ValueError: sizes that do not fit, a value that is not finite, a product that is not in the table; names it.
    """
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != dimension or len(vectors_ND) == 0:
        raise ValueError(f"vectors have shape {tuple(vectors_ND.shape)}, must have rows of {dimension} numbers")
    if len(row_product_ids) != len(vectors_ND):
        raise ValueError(f"{len(vectors_ND)} vectors, but the products of {len(row_product_ids)} rows")
    vectors_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
    table = type_products(products, like)
    product_idx_N = table.find(row_product_ids)
    if (product_idx_N < 0).any():
        row = int(np.argmax(product_idx_N < 0))
        raise ValueError(f"row {row}: product '{row_product_ids[row]}' is not in the products' table")
    _check_finite(vectors_ND, row_product_ids)
    found_P, product_idx_N = np.unique(product_idx_N, return_inverse=True)
    if len(found_P) < len(table):
        table = table.take(found_P)
    return IndexRows(vectors_ND, product_idx_N.astype(np.int32), table)


def _check_finite(vectors_ND: np.ndarray, row_product_ids: Sequence[str]) -> None:
    for start in range(0, len(vectors_ND), _CHECKED_ROWS):
        is_finite = np.isfinite(vectors_ND[start : start + _CHECKED_ROWS]).all(axis=1)
        if not is_finite.all():
            row = start + int(np.argmin(is_finite))
            raise ValueError(f"row {row}: the vector of product '{row_product_ids[row]}' is not finite")


def check_queries(queries_QD: np.ndarray, num_wanted: int, dimension: int) -> np.ndarray:
    """Return queries as an index takes them: (Q, D) float32, contiguous.

    Raises:
        ValueError: another shape or dimension, a value that is not finite, fewer than one product wanted.
    """
    query_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
    if query_QD.ndim != 2 or query_QD.shape[1] != dimension:
        raise ValueError(f"queries have shape {query_QD.shape}, the index needs (number of queries, {dimension})")
    if num_wanted < 1:
        raise ValueError(f"k={num_wanted}: ask for one product or more")
    if not math.isfinite(query_QD.sum()) and not np.isfinite(query_QD).all():
        raise ValueError("a query vector is not finite")
    return query_QD
