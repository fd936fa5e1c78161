"""The products of an index as an Arrow table with typed columns, and the rows (vectors) that belong to them."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.search.index.card import REBUILD
from mim_lightning.search.index.filters import FLAG, NUMBER, TEXT, Condition, OneOf
from mim_lightning.search.index.small_vectors import Vectors

ID = "product_id"
ALWAYS_TEXT = (ID, "title", "description", "category")
# a leading zero marks an article number, which is text
_NUMBER = r"^\s*[+-]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?\s*$"
_ARROW_TYPES = {TEXT: pa.large_string(), NUMBER: pa.float64(), FLAG: pa.bool_()}
_INTEGER = pa.int64()  # of a NUMBER column whose values are all integers
_MAX_EXACT = 1 << 53  # smaller integers are exact as floats
_MAX_BISECTED = 1000  # ids; more are found faster by hashing the whole column
_CHECKED_ROWS = 2**16  # at once: vectors may be in a file larger than memory


@dataclass(frozen=True)
class ProductTable:
    """P products in ascending order of id; a product's position is its number in the index."""

    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def column_types(self) -> dict[str, str]:
        """Column -> TEXT, NUMBER or FLAG."""
        return {field.name: _type_of(field.type) for field in self.table.schema}

    @cached_property
    def ids(self) -> pa.Array:
        return self.table[ID].combine_chunks()

    @cached_property
    def _id_bytes(self) -> tuple[memoryview, memoryview]:
        """Offsets and bytes of the ids: reading ten ids from them takes a tenth of the time of `take`."""
        _, offsets, data = self.ids.buffers()
        offsets = memoryview(offsets).cast("q")[self.ids.offset : self.ids.offset + len(self) + 1]
        return offsets, memoryview(data or b"")

    def ids_at(self, product_idx: np.ndarray) -> np.ndarray:
        """Return the ids (object, any shape) at positions; "" at -1."""
        offsets, data = self._id_bytes
        ids = [
            str(data[offsets[idx] : offsets[idx + 1]], "utf-8") if idx >= 0 else ""
            for idx in product_idx.ravel().tolist()
        ]
        return np.array(ids, dtype=object).reshape(product_idx.shape)

    def find(self, product_ids: Sequence[str]) -> np.ndarray:
        """Return the position of each id, -1 for an unknown id."""
        if len(product_ids) > _MAX_BISECTED:
            found = pc.index_in(pa.array(product_ids, pa.large_string()), value_set=self.ids)
            return pc.fill_null(found, -1).to_numpy().astype(np.int64)
        return np.fromiter(map(self._find_one, product_ids), np.int64, len(product_ids))

    def _find_one(self, product_id: str) -> int:
        idx = bisect.bisect_left(range(len(self)), product_id, key=lambda position: self.ids[position].as_py())
        return idx if idx < len(self) and self.ids[idx].as_py() == product_id else -1

    def records(self, product_idx: np.ndarray) -> list[dict[str, Any]]:
        return self.table.take(pa.array(product_idx, pa.int64())).to_pylist()

    def mask(self, conditions: Sequence[Condition]) -> np.ndarray:
        """Return which products (P,) meet all conditions."""
        if not conditions:
            return np.ones(len(self), dtype=bool)
        masks = [_meets(self.table[condition.column], condition) for condition in conditions]
        return pc.fill_null(reduce(pc.and_, masks), False).to_numpy().astype(bool)

    def take(self, product_idx: np.ndarray) -> ProductTable:
        """Return the products at ascending positions."""
        return ProductTable(self.table.take(pa.array(product_idx, pa.int64())).combine_chunks())

    def write(self, path: Path) -> None:
        with pa.ipc.new_file(path, self.table.schema) as writer:
            writer.write_table(self.table)


def read_products(path: Path) -> ProductTable:
    """Memory-map a table written by `ProductTable.write`.

    Raises:
        ValueError: the file is damaged; names it.
    """
    with errors_as_damaged_file(path, REBUILD):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)  # following an offset that points outside the file would crash the process
        _validate_ids(table)
        return ProductTable(table)


def _validate_ids(table: pa.Table) -> None:
    """Raise ValueError unless each product has an id of its own, in ascending order: they are found by bisection."""
    if ID not in table.column_names or table.schema.field(ID).type != _ARROW_TYPES[TEXT]:
        raise ValueError(f"it has no column '{ID}' of texts")
    ids = table[ID].combine_chunks()
    if ids.null_count or not pc.all(pc.less(ids[:-1], ids[1:]), min_count=0).as_py():
        raise ValueError(f"its column '{ID}' does not ascend")


def type_products(products: pa.Table, column_types: Mapping[str, str] | None = None) -> ProductTable:
    """Return a table with typed columns, in ascending order of id; empty cells are null.

    Args:
        products: one row per product; the column `product_id` is required, all others are kept.
        column_types: of the index that the products are added to; columns missing from `products` are null.

    Raises:
        ValueError: a missing, empty or repeated product id; a column that cannot be typed, or not as in the index.
    """
    if ID not in products.column_names:
        raise ValueError(f"the product table has no column '{ID}', it has {', '.join(products.column_names)}")
    if len(set(products.column_names)) < len(products.column_names):
        raise ValueError(f"the product table has a column twice: {', '.join(products.column_names)}")
    columns = {name: _to_typed(name, products[name], column_types) for name in products.column_names}
    for name, column_type in (column_types or {}).items():
        if name not in columns:
            columns[name] = pa.nulls(products.num_rows, _ARROW_TYPES[column_type])
    return ProductTable(_sort_by_id(pa.table({name: columns[name] for name in column_types or columns})))


def merge_products(tables: Iterable[ProductTable]) -> ProductTable:
    """Return one table, in ascending order of id, of products with different ids and the same columns."""
    parts = [part.table for part in tables]
    mixed = {name for name in parts[0].column_names if len({part.schema.field(name).type for part in parts}) > 1}
    for name in mixed:  # integers in one part, floats in another
        parts = [
            part.set_column(part.column_names.index(name), name, part[name].cast(pa.float64(), safe=False))
            for part in parts
        ]
    return ProductTable(_sort_by_id(pa.concat_tables(parts)))


def unknown_product(product_id: str) -> ValueError:
    """Return the error for a product id that the index does not have."""
    return ValueError(f"no product '{product_id}' in the index")


def pick_records(records: Mapping[str, dict[str, Any]], product_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return records, given by product id, in the order of the ids; ValueError for an id without a record."""
    for product_id in product_ids:
        if product_id not in records:
            raise unknown_product(product_id)
    return [records[product_id] for product_id in product_ids]


def _type_of(arrow_type: pa.DataType) -> str:
    return (
        NUMBER if arrow_type == _INTEGER else next(name for name, known in _ARROW_TYPES.items() if known == arrow_type)
    )


def _sort_by_id(table: pa.Table) -> pa.Table:
    if num_missing := table[ID].null_count:
        raise ValueError(f"{num_missing} products have no {ID}")
    table = table.take(pc.sort_indices(table[ID])).combine_chunks()
    ids = table[ID]
    is_repeated = pc.equal(ids[1:], ids[:-1])
    if pc.any(is_repeated).as_py():
        raise ValueError(f"product '{ids[pc.index(is_repeated, True).as_py()]}' is in the product table twice")
    return table


def _to_typed(name: str, column: pa.ChunkedArray, column_types: Mapping[str, str] | None) -> pa.ChunkedArray:
    if column_types is not None and name not in column_types:
        raise ValueError(f"the index has no column '{name}'; it has {', '.join(column_types)}")
    arrow_type = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_nested(arrow_type) or pa.types.is_binary(arrow_type) or pa.types.is_large_binary(arrow_type):
        raise ValueError(f"column '{name}' contains {arrow_type}; give text, numbers or true/false")
    if pa.types.is_boolean(arrow_type) and name not in ALWAYS_TEXT:
        natural = FLAG
    elif _is_number(arrow_type) and name not in ALWAYS_TEXT:
        natural = NUMBER
    else:
        natural, column = TEXT, column.cast(pa.large_string())
        column = pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), None, column)
        if name not in ALWAYS_TEXT and _has_only_numbers(column):
            natural, column = NUMBER, pc.utf8_trim_whitespace(column)
    wanted = column_types[name] if column_types else natural
    try:
        return _to_numbers(column) if wanted == natural == NUMBER else column.cast(_ARROW_TYPES[wanted])
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"column '{name}' contains {wanted} in the index, but not here: {reason}") from error


def _to_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of integers if all values are integers (a column with gaps may arrive as floats), else floats."""
    if not _is_number(column.type):
        with suppress(pa.ArrowInvalid):
            return pc.replace_substring_regex(column, r"\.0$", "").cast(_INTEGER)
        return column.cast(pa.float64())
    if pa.types.is_integer(column.type):
        with suppress(pa.ArrowInvalid):
            return column.cast(_INTEGER)
    column = column.cast(pa.float64(), safe=False)
    is_integer = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), _MAX_EXACT))
    return column.cast(_INTEGER) if pc.all(is_integer, min_count=0).as_py() else column


def _is_number(arrow_type: pa.DataType) -> bool:
    return pa.types.is_integer(arrow_type) or pa.types.is_floating(arrow_type) or pa.types.is_decimal(arrow_type)


def _has_only_numbers(column: pa.ChunkedArray) -> bool:
    matches = pc.match_substring_regex(column.drop_null(), _NUMBER)
    return len(matches) > 0 and bool(pc.all(matches).as_py())


def _meets(column: pa.ChunkedArray, condition: Condition) -> pa.ChunkedArray:
    if column.type == _INTEGER:  # the value it is compared with may be a fraction
        column = column.cast(pa.float64(), safe=False)
    if isinstance(condition, OneOf):
        return pc.is_in(column, value_set=pa.array(condition.values, column.type))
    limits = []
    if condition.low is not None:
        limits.append(pc.greater_equal(column, condition.low))
    if condition.high is not None:
        limits.append(pc.less_equal(column, condition.high))
    return reduce(pc.and_, limits)


@dataclass(frozen=True)
class IndexRows:
    """N rows of P products; every product has at least one."""

    vectors: Vectors  # (N, D) float32 when read, contiguous, possibly memory-mapped
    product_idx: np.ndarray  # (N,) int32, positions in `products`
    products: ProductTable
    full: np.ndarray | None = None  # (N, E) what `vectors` were cut or rounded from, if they were


def validate_rows(
    vectors_ND: np.ndarray,
    row_product_ids: Sequence[str],
    products: pa.Table,
    dimension: int,
    column_types: Mapping[str, str] | None = None,
) -> IndexRows:
    """Return rows that match their products; products without a row are left out, since no search could find them.

    Args:
        column_types: of the index that the rows are added to.

    Raises:
        ValueError: sizes that differ, a value that is not finite, a product that is not in the table; names it.
    """
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != dimension or len(vectors_ND) == 0:
        raise ValueError(f"vectors have shape {tuple(vectors_ND.shape)}, must have rows of {dimension} numbers")
    if len(row_product_ids) != len(vectors_ND):
        raise ValueError(f"{len(vectors_ND)} vectors, but the products of {len(row_product_ids)} rows")
    vectors_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
    table = type_products(products, column_types)
    product_idx_N = table.find(row_product_ids)
    if (product_idx_N < 0).any():
        row = int(np.argmax(product_idx_N < 0))
        raise ValueError(f"row {row}: product '{row_product_ids[row]}' is not in the product table")
    for start in range(0, len(vectors_ND), _CHECKED_ROWS):
        is_finite = np.isfinite(vectors_ND[start : start + _CHECKED_ROWS]).all(axis=1)
        if not is_finite.all():
            row = start + int(np.argmin(is_finite))
            raise ValueError(f"row {row}: the vector of product '{row_product_ids[row]}' is not finite")
    used_P, product_idx_N = np.unique(product_idx_N, return_inverse=True)
    if len(used_P) < len(table):
        table = table.take(used_P)
    return IndexRows(vectors_ND, product_idx_N.astype(np.int32), table)
