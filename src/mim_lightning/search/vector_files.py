"""Vectors, ids and metadata of an embedded set as one Parquet file, for other stores and programs.

A row has the id (`product_id` or `query_id`), `vector`, a list of D numbers, and columns of metadata: of a product
title, category and the further columns of its table; of a query text, category and the ids of its products. A JSON file
beside it says which model and which set they are of. Rows are written shard by shard, so memory does not grow with the
set.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.fields import QUERY, side_of
from mim_lightning.io.atomic import atomic_write
from mim_lightning.search.embedding_store import BLOCK_ROWS, ID, TARGETS, EmbeddingStore, parse_records, to_column

VECTOR, QUERY_ID = "vector", "query_id"
TYPES = {"float32": pa.float32(), "float16": pa.float16()}


@dataclass(frozen=True)
class VectorFileFacts:
    """What a file of vectors is of: the content of the JSON beside it."""

    file: str  # name of the Parquet file
    id_column: str
    fingerprint: str
    tower: str  # or fusion
    dimension: int
    num_rows: int
    num_absent: int  # rows of the set without the inputs of the tower, which the file lacks
    dtype: str
    checkpoint: str
    shards: str  # folder or address of the embedded set
    version: int


def write_vectors(
    path: Path, store: EmbeddingStore, shards: ShardSet, fingerprint: str, checkpoint: str, dtype: str
) -> VectorFileFacts:
    """Write an embedded set.

    Args:
        path: of the Parquet file; the facts get the same name with `.json`, after it.
        store: has every shard of the set.
        dtype: of the numbers, a name in `TYPES`.

    Raises:
        ValueError: no row has a vector; a file of the store is damaged.
    """
    facts = store.facts
    id_column = QUERY_ID if side_of(facts.gallery) == QUERY else ID
    kinds = _find_kinds(store, shards)
    names = {name: f"metadata_{name}" if name in (id_column, VECTOR) else name for name in kinds}
    fields = {id_column: pa.string(), VECTOR: pa.list_(TYPES[dtype], facts.dimension)}
    fields |= {names[name]: _to_array(name, [], kinds[name]).type for name in kinds}
    path.with_suffix(".json").unlink(missing_ok=True)  # or that of a former file would stand beside the new one
    schema, num_rows, num_absent = pa.schema(list(fields.items())), 0, 0
    with (
        atomic_write(path) as partial,
        pa.parquet.ParquetWriter(partial, schema, compression="zstd", use_dictionary=[*names.values()]) as writer,
    ):
        for vectors_ND, table, absent in store.read_shards(shards):
            num_rows, num_absent = num_rows + len(table), num_absent + absent
            numbers = pa.array(vectors_ND.astype(dtype).ravel())
            columns = [table[ID].cast(pa.string()), pa.FixedSizeListArray.from_arrays(numbers, facts.dimension)]
            records = list(_records(table))
            columns += [_to_array(name, [record.get(name) for record in records], kinds[name]) for name in kinds]
            writer.write_table(pa.table(columns, schema=schema))
        if not num_rows:
            raise ValueError(f"{facts.catalog}: no row has the inputs of '{facts.gallery}'")
    found = VectorFileFacts(
        *(path.name, id_column, fingerprint, facts.gallery, facts.dimension, num_rows, num_absent, dtype),
        *(checkpoint, facts.catalog, shards.version),
    )
    with atomic_write(path.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(asdict(found), indent=2, ensure_ascii=False))
    return found


def _find_kinds(store: EmbeddingStore, shards: ShardSet) -> dict[str, set[type]]:
    """Return the columns of metadata, in order, and the types of their values."""
    kinds: dict[str, set[type]] = {}
    for idx in range(len(store.facts.shard_sizes)):
        for record in _records(store.read_products(idx, shards)):
            for name, value in record.items():
                kinds.setdefault(name, set()).add(type(value))
    kinds.pop(ID, None)
    first = [name for name in ("title", "text", "category") if name in kinds]
    return {name: kinds[name] for name in (*first, *sorted(kinds.keys() - {*first}))}


def _records(table: pa.Table) -> Iterator[dict[str, Any]]:
    for block in table.to_batches(BLOCK_ROWS):
        yield from parse_records(block)


def _to_array(name: str, values: Sequence[Any], kinds: set[type]) -> pa.Array:
    if name == TARGETS and list in kinds:
        return pa.array(values, pa.list_(pa.string()))
    column = to_column(list(values), kinds)
    return column.cast(pa.string()) if pa.types.is_null(column.type) else column
