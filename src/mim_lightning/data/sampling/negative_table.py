"""The hard negatives of queries: products that a model took for an answer, as a Parquet file and as arrays of keys.

A file has a row a query, with the negatives best first: `query_id` and `negative_ids`, or their hashes `query_key` and
`negative_keys`. Scores are for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from mim_lightning.data.manifest.content_hash import file_id
from mim_lightning.ids import NO_KEY, hash_id
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import errors_as_damaged_file

KINDS = {"id": ("query_id", "negative_ids"), "key": ("query_key", "negative_keys")}  # columns of a file
REMEDY = "mine it again"


@dataclass(frozen=True, eq=False)
class NegativeTable:
    """Hard negatives by hashed query id."""

    query_keys: np.ndarray = field(repr=False)  # (Q,) int64, ascending
    product_keys: np.ndarray = field(repr=False)  # (Q, K) int64, NO_KEY where a query has fewer

    def __len__(self) -> int:
        return len(self.query_keys)

    def find(self, query_keys: np.ndarray) -> np.ndarray:
        """Return the negatives of queries, (n, K); all NO_KEY of a query that is not in the table."""
        if not len(self):
            return np.full((len(query_keys), max(1, self.product_keys.shape[1])), NO_KEY)
        places = np.minimum(np.searchsorted(self.query_keys, query_keys), len(self) - 1)
        is_known = self.query_keys[places] == query_keys
        return np.where(is_known[:, None], self.product_keys[places], NO_KEY)


def write_negatives(path: Path, columns: Mapping[str, Any]) -> None:
    """Write a table of negatives as a whole.

    Args:
        columns: by name, see above; of negatives and scores a list a row, see `to_lists`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        pyarrow.parquet.write_table(pa.table(dict(columns)), partial, compression="zstd")


def name_products(keys_K: np.ndarray, known: Mapping[int, str]) -> pa.Array:
    """Return the ids (K,) of products by their keys: Python's strings would need ten times the memory."""
    known_keys = np.array(sorted(known))
    ids = pa.array([known[key] for key in known_keys.tolist()], pa.large_string())
    return ids.take(np.searchsorted(known_keys, keys_K))


def to_lists(rows_QK: np.ndarray | pa.Array, counts_Q: np.ndarray) -> pa.ListArray:
    """Return the first so many values of each row as lists: Python's would need ten times the memory.

    Args:
        rows_QK: the rows, or an array of the values that are kept, one after the other.
    """
    if isinstance(rows_QK, np.ndarray):
        rows_QK = pa.array(rows_QK[np.arange(rows_QK.shape[1]) < counts_Q[:, None]])
    return pa.ListArray.from_arrays(pa.array(np.append(0, counts_Q.cumsum()).astype(np.int32)), rows_QK)


def digest_negatives(path: Path, where: str) -> str:
    """Return a digest of the content of a table.

    Raises:
        ValueError: no such file.
    """
    _validate_file(path, where)
    return file_id(path)


def _validate_file(path: Path, where: str) -> None:
    if not path.is_file():
        raise ValueError(f"{where}: no such file; `mim mine` writes one")


def read_negatives(path: Path, where: str) -> NegativeTable:
    """Read a table of negatives, of `mine`, of a run or of the user's own.

    Args:
        where: names the file in errors.

    Raises:
        ValueError: no such file, one that is damaged, without the columns, or without a row.
    """
    _validate_file(path, where)
    with errors_as_damaged_file(path, REMEDY):
        names = pyarrow.parquet.read_schema(path).names
    columns = next((list(pair) for pair in KINDS.values() if {*pair} <= {*names}), None)
    if columns is None:
        raise ValueError(f"{where}: needs the columns query_id and negative_ids; it has {', '.join(names)}")
    with errors_as_damaged_file(path, REMEDY):
        found = pyarrow.parquet.read_table(path, columns=columns)
        queries, lists = (found.column(name).combine_chunks() for name in columns)
        counts, query_keys = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(), _keys(queries)
        if not len(query_keys):
            raise ValueError("has no query")
        product_keys = np.full((len(query_keys), max(1, counts.max())), NO_KEY)
        product_keys[np.arange(product_keys.shape[1]) < counts[:, None]] = _keys(lists.flatten())
    order = np.argsort(query_keys, kind="stable")
    return NegativeTable(query_keys[order], product_keys[order])


def _keys(values: pa.Array) -> np.ndarray:
    """Return keys as they are, and those of ids."""
    if pa.types.is_integer(values.type):
        return np.array(values.to_numpy(zero_copy_only=False), dtype=np.int64)
    encoded = values.dictionary_encode()
    known = np.array([hash_id(str(item)) for item in encoded.dictionary.to_pylist()], dtype=np.int64)
    return known[encoded.indices.to_numpy(zero_copy_only=False)] if len(known) else np.empty(0, dtype=np.int64)
