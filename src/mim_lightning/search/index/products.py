"""The products of an index: their ids, in order, and all that is known of them besides, as an Arrow table.

A table of texts as a shop has it comes in; columns that hold only numbers become numbers. Out: ids and records
by position, positions by id, and which products a filter lets through. Called by `segment` and the backends.
"""

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
from mim_lightning.search.index.filters import FLAG, NUMBER, TEXT, Condition, OneOf

ID = "product_id"
ALWAYS_TEXT = (ID, "title", "description", "category")
# a leading zero speaks of an article number, which is a text
_NUMBER = r"^\s*[+-]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?\s*$"
_TYPES = {TEXT: pa.large_string(), NUMBER: pa.float64(), FLAG: pa.bool_()}
_WHOLE = pa.int64()  # of a column of numbers that are whole; one with gaps may have come as floats
_EXACT = 1 << 53  # whole numbers below it are the same as floats
_FEW = 1000  # ids are looked up one by one, more by hashing all there are


@dataclass(frozen=True)
class ProductTable:
    """P products, ascending by id; a product's position is its number in the index."""

    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def kinds(self) -> dict[str, str]:
        """Column -> TEXT, NUMBER or FLAG."""
        return {field.name: kind_of(field.type) for field in self.table.schema}

    @cached_property
    def ids(self) -> pa.Array:
        return self.table[ID].combine_chunks()

    @cached_property
    def _id_bytes(self) -> tuple[memoryview, memoryview]:
        """Where each id ends in the letters of all; ten ids are read from here in a tenth of the time `take` needs."""
        _, offsets, letters = self.ids.buffers()
        ends = memoryview(offsets).cast("q")[self.ids.offset : self.ids.offset + len(self) + 1]
        return ends, memoryview(letters or b"")

    def ids_at(self, product_idx: np.ndarray) -> np.ndarray:
        """Return the ids (object, any shape) at positions; "" at -1."""
        ends, letters = self._id_bytes
        found = [
            str(letters[ends[idx] : ends[idx + 1]], "utf-8") if idx >= 0 else "" for idx in product_idx.ravel().tolist()
        ]
        return np.array(found, dtype=object).reshape(product_idx.shape)

    def find(self, product_ids: Sequence[str]) -> np.ndarray:
        """Return the position of each id, -1 where there is no such product."""
        if len(product_ids) > _FEW:
            found = pc.index_in(pa.array(product_ids, pa.large_string()), value_set=self.ids)
            return pc.fill_null(found, -1).to_numpy().astype(np.int64)
        return np.fromiter(map(self._find_one, product_ids), np.int64, len(product_ids))

    def _find_one(self, product_id: str) -> int:
        idx = bisect.bisect_left(range(len(self)), product_id, key=lambda place: self.ids[place].as_py())
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
        """Return some of the products; positions ascend."""
        return ProductTable(self.table.take(pa.array(product_idx, pa.int64())).combine_chunks())

    def write(self, path: Path) -> None:
        with pa.ipc.new_file(path, self.table.schema) as writer:
            writer.write_table(self.table)


def read_products(path: Path) -> ProductTable:
    """Open a table that `ProductTable.write` wrote; the rows stay in the file until they are asked for.

    Raises:
        ValueError: the file is damaged; names it.
    """
    with errors_as_damaged_file(path, "build the index anew"):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)  # offsets that lead out of the file end the process where they are followed
        return ProductTable(table)


def type_products(products: pa.Table, like: Mapping[str, str] | None = None) -> ProductTable:
    """Return a table with typed columns, ascending by id; empty cells are null.

    Args:
        products: a row a product; the column `product_id` is needed, all others are kept.
        like: kinds of the columns of an index that the products are added to; a column it has besides is null here.

    Raises:
        ValueError: no or an empty or repeated product id; a column that cannot be typed, or not like the index's.
    """
    if ID not in products.column_names:
        raise ValueError(f"the products' table has no column '{ID}', it has {', '.join(products.column_names)}")
    if len(set(products.column_names)) < len(products.column_names):
        raise ValueError(f"the products' table has a column twice: {', '.join(products.column_names)}")
    columns = {name: _typed(name, products[name], like) for name in products.column_names}
    for name in (like or {}).keys() - columns.keys():
        columns[name] = pa.nulls(products.num_rows, _TYPES[(like or {})[name]])
    order = list(like) if like else list(columns)
    table = pa.table({name: columns[name] for name in order})
    return ProductTable(_sorted_by_id(table))


def unknown_product(product_id: str) -> ValueError:
    """Return the error for a product that is asked for by an id that the index does not have."""
    return ValueError(f"no product '{product_id}' in the index")


def pick_records(records: Mapping[str, dict[str, Any]], product_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return records, given by product id, in the order asked for; ValueError for a product that has none."""
    for product_id in product_ids:
        if product_id not in records:
            raise unknown_product(product_id)
    return [records[product_id] for product_id in product_ids]


def merge_products(tables: Iterable[ProductTable]) -> ProductTable:
    """Join products of different ids and the same columns into one table, ascending by id."""
    parts = [part.table for part in tables]
    mixed = {name for name in parts[0].column_names if len({part.schema.field(name).type for part in parts}) > 1}
    for name in mixed:  # whole numbers here, others there
        parts = [
            part.set_column(part.column_names.index(name), name, part[name].cast(pa.float64(), safe=False))
            for part in parts
        ]
    return ProductTable(_sorted_by_id(pa.concat_tables(parts)))


def kind_of(column_type: pa.DataType) -> str:
    return NUMBER if column_type == _WHOLE else next(kind for kind, known in _TYPES.items() if known == column_type)


def _sorted_by_id(table: pa.Table) -> pa.Table:
    ids = table[ID]
    if ids.null_count:
        raise ValueError(f"{ids.null_count} products have no {ID}")
    table = table.take(pc.sort_indices(ids)).combine_chunks()
    ids = table[ID]
    is_repeated = pc.equal(ids[1:], ids[:-1])
    if pc.any(is_repeated).as_py():
        raise ValueError(f"product '{ids[pc.index(is_repeated, True).as_py()]}' stands in the table twice")
    return table


def _typed(name: str, column: pa.ChunkedArray, like: Mapping[str, str] | None) -> pa.ChunkedArray:
    if like is not None and name not in like:
        raise ValueError(f"the index has no column '{name}'; it has {', '.join(like)}")
    column_type = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_nested(column_type) or pa.types.is_binary(column_type) or pa.types.is_large_binary(column_type):
        raise ValueError(f"column '{name}' holds {column_type}; give text, numbers or true/false")
    if pa.types.is_boolean(column_type) and name not in ALWAYS_TEXT:
        natural = FLAG
    elif _is_number(column_type) and name not in ALWAYS_TEXT:
        natural = NUMBER
    else:
        natural = TEXT
        column = _texts(column.cast(pa.large_string()))
        if name not in ALWAYS_TEXT and _only_numbers(column):
            natural, column = NUMBER, pc.utf8_trim_whitespace(column)
    wanted = like[name] if like else natural
    try:
        return _numbers(column) if wanted == natural == NUMBER else column.cast(_TYPES[wanted])
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"column '{name}' of the index holds {wanted}, not so here: {reason}") from error


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return whole numbers as such, others as floats."""
    if not _is_number(column.type):
        with suppress(pa.ArrowInvalid):
            return pc.replace_substring_regex(column, r"\.0$", "").cast(_WHOLE)
        return column.cast(pa.float64())
    if pa.types.is_integer(column.type):
        with suppress(pa.ArrowInvalid):
            return column.cast(_WHOLE)
    column = column.cast(pa.float64(), safe=False)
    is_whole = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), _EXACT))
    return column.cast(_WHOLE) if pc.all(is_whole, min_count=0).as_py() else column


def _is_number(column_type: pa.DataType) -> bool:
    return pa.types.is_integer(column_type) or pa.types.is_floating(column_type) or pa.types.is_decimal(column_type)


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts with null for cells of nothing but blanks."""
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), None, column)


def _only_numbers(column: pa.ChunkedArray) -> bool:
    matches = pc.match_substring_regex(column.drop_null(), _NUMBER)
    return len(matches) > 0 and bool(pc.all(matches).as_py())


def _meets(column: pa.ChunkedArray, condition: Condition) -> pa.ChunkedArray:
    if column.type == _WHOLE:  # what it is compared with need not be whole
        column = column.cast(pa.float64(), safe=False)
    if isinstance(condition, OneOf):
        return pc.is_in(column, value_set=pa.array(condition.values, column.type))
    ends = []
    if condition.low is not None:
        ends.append(pc.greater_equal(column, condition.low))
    if condition.high is not None:
        ends.append(pc.less_equal(column, condition.high))
    return reduce(pc.and_, ends)
