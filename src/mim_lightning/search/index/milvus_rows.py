"""Products as rows of a Milvus collection: fields, entities, records, and filters as expressions.

A products' table or checked conditions come in, what pymilvus wants goes out. Each row carries its product's id and
columns; a column's field has a number for a name, since Milvus takes only letters and digits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mim_lightning.search.index.filters import FLAG, NUMBER, TEXT, Condition, OneOf, Value
from mim_lightning.search.index.products import ID
from mim_lightning.search.index.rows import IndexRows

ROW, VECTOR = "row_id", "vector"
_LONGEST_TEXT = 65_535  # bytes, Milvus's own limit
_BATCH_BYTES = 2**24  # Milvus takes 64 MiB at once
_TEXT_BYTES = 4096  # what a row's columns may come to, so that a batch stays below that
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def fields_of(columns: Sequence[str]) -> dict[str, str]:
    """Return column -> field, `product_id` keeping its name."""
    others = [column for column in columns if column != ID]
    return {ID: ID, **{column: f"column_{number}" for number, column in enumerate(others)}}


def make_schema(client: Any, kinds: Mapping[str, str], dimension: int) -> Any:
    """Return the schema of a collection for products with such columns."""
    from pymilvus import DataType

    types = {TEXT: DataType.VARCHAR, NUMBER: DataType.DOUBLE, FLAG: DataType.BOOL}
    schema = client.create_schema(auto_id=True, enable_dynamic_field=False)
    schema.add_field(ROW, DataType.INT64, is_primary=True)
    schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=dimension)
    for column, field in fields_of(list(kinds)).items():
        options = {"max_length": _LONGEST_TEXT} if kinds[column] == TEXT else {}
        schema.add_field(field, types[kinds[column]], nullable=column != ID, **options)
    return schema


def entities(rows: IndexRows) -> Iterator[list[dict[str, Any]]]:
    """Yield rows as entities, in batches that Milvus takes at once."""
    fields = fields_of(rows.products.table.column_names)
    per_batch = max(1, _BATCH_BYTES // (4 * rows.vectors.shape[1] + _TEXT_BYTES))
    for start in range(0, len(rows.vectors), per_batch):
        part = slice(start, start + per_batch)
        records = rows.products.records(rows.product_idx[part])
        yield [
            {VECTOR: vector, **{fields[column]: _stored(value) for column, value in record.items()}}
            for vector, record in zip(np.asarray(rows.vectors[part]), records, strict=True)
        ]


def as_record(entity: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Return a row's product as it was given; numbers that are whole come as such."""
    fields = fields_of(columns)
    return {column: _given(entity.get(fields[column])) for column in columns}


def _stored(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _given(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def expression(conditions: Sequence[Condition], columns: Sequence[str]) -> str:
    """Return conditions in Milvus's language; texts cannot end their quotes."""
    fields = fields_of(columns)
    return " and ".join(_expression(condition, fields[condition.column]) for condition in conditions)


def _expression(condition: Condition, field: str) -> str:
    if isinstance(condition, OneOf):
        return f"{field} in [{', '.join(map(_literal, condition.values))}]"
    ends = []
    if condition.low is not None:
        ends.append(f"{field} >= {_literal(condition.low)}")
    if condition.high is not None:
        ends.append(f"{field} <= {_literal(condition.high)}")
    return " and ".join(ends)


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPES)}"'
    return str(value).lower() if isinstance(value, bool) else repr(float(value))
