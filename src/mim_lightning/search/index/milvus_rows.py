"""Products as entities of a Milvus collection: schema, entities, records, and filters as expressions.

Each row carries the id and the columns of its product; the field of a column is numbered, since Milvus allows only
letters and digits in its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mim_lightning.search.index.filters import FLAG, NUMBER, TEXT, Condition, OneOf, Value
from mim_lightning.search.index.products import ID, IndexRows
from mim_lightning.search.index.small_vectors import encode_signs

ROW, VECTOR, BITS = "row_id", "vector", "bits"
_MAX_TEXT = 65_535  # bytes, a limit of Milvus
_BATCH_BYTES = 2**24  # Milvus accepts 64 MiB at once
_TEXT_BYTES = 4096  # allowance for the columns of a row, so that a batch stays below the limit
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def column_fields(columns: Sequence[str]) -> dict[str, str]:
    """Return column -> field; `product_id` keeps its name."""
    others = [column for column in columns if column != ID]
    return {ID: ID, **{column: f"column_{number}" for number, column in enumerate(others)}}


def make_schema(client: Any, column_types: Mapping[str, str], dimension: int, has_bits: bool = False) -> Any:
    """Return the schema of a collection for products with these columns.

    Args:
        has_bits: the signs of a vector are searched; the vectors, which rescore, are read from disk.
    """
    from pymilvus import DataType

    types = {TEXT: DataType.VARCHAR, NUMBER: DataType.DOUBLE, FLAG: DataType.BOOL}
    schema = client.create_schema(auto_id=True, enable_dynamic_field=False)
    schema.add_field(ROW, DataType.INT64, is_primary=True)
    if has_bits:
        schema.add_field(BITS, DataType.BINARY_VECTOR, dim=8 * -(-dimension // 8))
        schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=dimension, mmap_enabled=True)
    else:
        schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=dimension)
    for column, field in column_fields(list(column_types)).items():
        options = {"max_length": _MAX_TEXT} if column_types[column] == TEXT else {}
        schema.add_field(field, types[column_types[column]], nullable=column != ID, **options)
    return schema


def to_entities(rows: IndexRows, has_bits: bool = False) -> Iterator[list[dict[str, Any]]]:
    """Yield rows as entities, in batches that Milvus accepts."""
    fields = column_fields(rows.products.table.column_names)
    batch = max(1, _BATCH_BYTES // (4 * rows.vectors.shape[1] + _TEXT_BYTES))
    for start in range(0, len(rows.vectors), batch):
        part = slice(start, start + batch)
        records = rows.products.records(rows.product_idx[part])
        vectors_ND = np.asarray(rows.vectors[part])
        bits_N = [{BITS: bits.tobytes()} for bits in encode_signs(vectors_ND)] if has_bits else [{}] * len(vectors_ND)
        yield [
            {VECTOR: vector, **bits, **{fields[column]: _to_stored(value) for column, value in record.items()}}
            for vector, bits, record in zip(vectors_ND, bits_N, records, strict=True)
        ]


def to_record(entity: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Return the product of a row; numbers without a fraction become integers."""
    fields = column_fields(columns)
    return {column: _from_stored(entity.get(fields[column])) for column in columns}


def _to_stored(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _from_stored(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def to_expression(conditions: Sequence[Condition], columns: Sequence[str]) -> str:
    """Return conditions as a Milvus expression; texts are escaped so that they cannot end their quotes."""
    fields = column_fields(columns)
    parts = []
    for condition in conditions:
        field = fields[condition.column]
        if isinstance(condition, OneOf):
            parts.append(f"{field} in [{', '.join(map(_to_literal, condition.values))}]")
            continue
        if condition.low is not None:
            parts.append(f"{field} >= {_to_literal(condition.low)}")
        if condition.high is not None:
            parts.append(f"{field} <= {_to_literal(condition.high)}")
    return " and ".join(parts)


def _to_literal(value: Value) -> str:
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPES)}"'
    return str(value).lower() if isinstance(value, bool) else repr(float(value))
