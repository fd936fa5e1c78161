"""Parquet and Arrow files: a list of columns and an iterator over rows, whose pictures are pointed at, not read.

A place comes in; rows by the file's own column names, numbered from 1, go out, with a list of TableCells where a cell
holds pictures. `table` calls it; `pictures.cells` reads what they point at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mim_lightning.data.images.reader import TableCell
from mim_lightning.data.manifest.row_issue import RowError
from mim_lightning.io.paths import PathOrUrl, open_binary

Rows = Iterator[tuple[int, dict[str, Any] | RowError]]
ReadRows = Callable[[Set[str], Set[str], bool], Rows]  # wanted columns, pictures among them, are all others wanted too
BATCH_SIZE = 1000  # rows without pictures
NUM_PICTURES = 64  # rows with pictures, that are in memory at once


def open_parquet(place: PathOrUrl) -> tuple[list[str], ReadRows]:
    """Return the columns of a Parquet file, and what reads its rows.

    That takes the columns that are wanted, which of them are pictures, if they are of a type that can hold them, and
    whether to read the other columns besides, but for those that hold bytes.

    Raises:
        ValueError: not a Parquet file, or a damaged one.
    """
    import pyarrow.parquet

    with _naming(place, "Parquet"):
        file = pyarrow.parquet.ParquetFile(place if isinstance(place, Path) else open_binary(place))
        schema = file.schema_arrow

    def read(wanted: Set[str], pictures: Set[str], all_plain: bool) -> Rows:
        held, plain = divide(schema, wanted, pictures, all_plain)
        return _parquet_rows(place, file, plain, held)

    return schema.names, read


def _parquet_rows(place: PathOrUrl, file: Any, plain: list[str], held: list[str]) -> Rows:
    number = 0
    with file, _naming(place, "Parquet"):
        for group in range(file.num_row_groups):
            counts = {column: _count_in_group(file, group, column) for column in held}
            first = number
            for batch in file.iter_batches(BATCH_SIZE, row_groups=[group], columns=plain):
                part = {name: values[number - first :] for name, values in counts.items()}
                yield from _numbered(place, batch, part, number)
                number += batch.num_rows


def _count_in_group(file: Any, group: int, column: str) -> np.ndarray:
    """Return how many pictures each row of a row group has; the pictures are read only if some are missing."""
    facts = file.metadata.row_group(group)
    leaves = [facts.column(i) for i in range(facts.num_columns)]
    stored = next((leaf for leaf in leaves if leaf.path_in_schema in (column, f"{column}.bytes")), None)
    statistics = stored.statistics if stored is not None else None
    if statistics is not None and statistics.has_null_count and statistics.null_count == 0:
        return np.ones(facts.num_rows, dtype=np.int64)
    batches = file.iter_batches(NUM_PICTURES, row_groups=[group], columns=[column])
    return np.concatenate([_count_pictures(batch.column(0)) for batch in batches])


def open_arrow(place: PathOrUrl) -> tuple[list[str], ReadRows]:
    """Do the same for a local file of Arrow's stream format, which Hugging Face data sets are kept in."""
    import pyarrow

    with _naming(place, "Arrow"):
        reader = pyarrow.ipc.open_stream(pyarrow.memory_map(str(place)))

    def read(wanted: Set[str], pictures: Set[str], all_plain: bool) -> Rows:
        held, plain = divide(reader.schema, wanted, pictures, all_plain)
        return _arrow_rows(place, reader, plain, held)

    return reader.schema.names, read


def _arrow_rows(place: PathOrUrl, reader: Any, plain: list[str], held: list[str]) -> Rows:
    number = 0
    with _naming(place, "Arrow"):
        for batch in reader:
            counts = {column: _count_pictures(batch.column(column)) for column in held}
            yield from _numbered(place, batch.select(plain), counts, number)
            number += batch.num_rows


def _numbered(place: PathOrUrl, batch: Any, counts: dict[str, np.ndarray], num_before: int) -> Rows:
    # a batch without columns has rows all the same
    rows = batch.to_pylist() if batch.num_columns else [{} for _ in range(batch.num_rows)]
    for i, row in enumerate(rows):
        cells = {
            column: [TableCell(str(place), num_before + i, column, item) for item in range(values[i])]
            for column, values in counts.items()
        }
        yield num_before + i + 1, row | cells


def divide(schema: Any, wanted: Set[str], pictures: Set[str], all_plain: bool) -> tuple[list[str], list[str]]:
    """Return the columns with pictures, to be pointed at, and those to read as they are."""
    heavy = {field.name for field in schema if holds_bytes(field.type)}
    held = [name for name in schema.names if name in heavy and name in pictures]
    plain = [
        name for name in schema.names if name not in held and (name in wanted or (all_plain and name not in heavy))
    ]
    return held, plain


def holds_bytes(kind: Any) -> bool:
    """Is this the type of bytes, of the Hugging Face struct {bytes, path}, or of a list of either?"""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        return holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _count_pictures(cells: Any) -> np.ndarray:
    """Return the number of pictures in each cell of a column: lists may hold several."""
    from pyarrow import compute, types

    if types.is_list(cells.type) or types.is_large_list(cells.type):
        return compute.fill_null(compute.list_value_length(cells), 0).to_numpy(zero_copy_only=False)
    is_there = cells.is_valid()
    if types.is_struct(cells.type):
        stored, path = cells.field("bytes"), cells.field("path")
        is_there = compute.and_(is_there, compute.or_(stored.is_valid(), path.is_valid()))
    return is_there.to_numpy(zero_copy_only=False).astype(np.int64)


@contextmanager
def _naming(place: PathOrUrl, kind: str) -> Iterator[None]:
    """Make whatever the reader says of a damaged file an error that names the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{place}: not a {kind} table ({' '.join(str(error).split())})") from error
