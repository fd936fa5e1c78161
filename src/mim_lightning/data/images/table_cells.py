"""Images in tables: random access to cells of Parquet and Arrow files.

Parquet is made for reading in order: `unpack_all` copies columns to Arrow files, from which any row is read at once.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from mim_lightning.display.progress import ProgressMeter
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.paths import PathOrUrl, file_system, join, open_binary, parent_of, to_path_or_url

ARROW = ".arrow"  # any other file is Parquet
NUM_ROWS = 64  # of a batch of an unpacked column


def read_cell(path: str, row: int, column: str, item: int, cache: str | None) -> bytes | PathOrUrl:
    """Return the `item`-th image of a cell, or its path or URL if the cell contains that only.

    Args:
        cache: the folder that `unpack_all` wrote to; None: there is none.

    Raises:
        ValueError: the table is damaged, or the cell is empty.
    """
    import pyarrow

    stamp = _stamp(path)
    unpacked = _unpacked_path(path, stamp, column, cache) if cache and not path.endswith(ARROW) else None
    try:
        if unpacked is not None and unpacked.is_file():
            cells, at = _open_arrow(str(unpacked), "").column(column), row
        elif path.endswith(ARROW):
            cells, at = _open_arrow(path, stamp).column(column), row
        else:
            cells, at = _group_of(path, stamp, column, row)
        value = cells[at].as_py()
        value = value[item] if isinstance(value, list) else value
    except (pyarrow.ArrowException, IndexError, OSError) as error:
        raise ValueError(f"the table is damaged ({' '.join(str(error).split())})") from error
    return _content(value, path)


def unpack_all(columns: Iterable[tuple[str, str]], cache: str) -> None:
    """Copy columns, (path of a Parquet file, name), to Arrow files in the cache, unless they are there already.

    Raises:
        ValueError: a table is damaged.
    """
    targets = {(path, column): _unpacked_path(path, _stamp(path), column, cache) for path, column in columns}
    missing = [(path, column, target) for (path, column), target in targets.items() if not target.is_file()]
    if not missing:
        return
    num_rows = num_done = num_bytes = 0
    for path, _, _ in missing:
        with _table_errors(path), _open_parquet(to_path_or_url(path)) as table:
            num_rows += table.metadata.num_rows
    with ProgressMeter(num_rows, verb="unpacked", noun="rows", label="image columns") as progress:
        for path, column, target in missing:
            for batch in _unpack(path, column, target):
                num_done, num_bytes = num_done + batch.num_rows, num_bytes + batch.nbytes
                progress.update(num_done, num_bytes)


def _unpack(path: str, column: str, target: Path) -> Iterator[Any]:
    """Write a column to an Arrow file, and yield each batch after it is written."""
    import pyarrow

    target.parent.mkdir(parents=True, exist_ok=True)
    with _table_errors(path), _open_parquet(to_path_or_url(path)) as table, atomic_write(target) as partial:
        schema = pyarrow.schema([table.schema_arrow.field(column)])
        with pyarrow.ipc.new_stream(str(partial), schema) as out:
            for batch in table.iter_batches(NUM_ROWS, columns=[column]):
                out.write_batch(batch)
                yield batch


@contextmanager
def _table_errors(path: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: the table is damaged ({' '.join(str(error).split())})") from error


def _content(value: Any, path: str) -> bytes | PathOrUrl:
    if isinstance(value, dict):
        if value["bytes"] is None and value["path"]:
            return join(parent_of(to_path_or_url(path)), value["path"])
        value = value["bytes"]
    if not value:
        raise ValueError("the cell is empty")
    return value


def _stamp(path: str) -> str:
    """Return a text that changes when the file is written again."""
    place = to_path_or_url(path)
    if isinstance(place, str):
        return _remote_stamp(place)
    status = place.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


@cache
def _remote_stamp(url: str) -> str:
    system, name = file_system(url)
    return str(system.ukey(name))


def _unpacked_path(path: str, stamp: str, column: str, cache: str) -> Path:
    digest = hashlib.blake2b("\n".join((path, stamp, column)).encode(), digest_size=16).hexdigest()
    return Path(cache) / "tables" / f"{digest}.arrow"


@lru_cache(maxsize=64)
def _open_arrow(path: str, stamp: str) -> Any:
    """Return a memory-mapped table: a cell is read from disk when it is used."""
    import pyarrow

    return pyarrow.ipc.open_stream(pyarrow.memory_map(path)).read_all()


def _open_parquet(place: PathOrUrl) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(place if isinstance(place, Path) else open_binary(place))


def _group_of(path: str, stamp: str, column: str, row: int) -> tuple[Any, int]:
    """Return the column of the row group with a row, and the row's position in it."""
    starts = _group_starts(path, stamp)
    group = bisect_right(starts, row) - 1
    return _read_group(path, stamp, column, group), row - starts[group]


@lru_cache(maxsize=64)
def _group_starts(path: str, stamp: str) -> list[int]:
    with _open_parquet(to_path_or_url(path)) as table:
        metadata = table.metadata
        return [0, *accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))]


@lru_cache(maxsize=2)  # a row group may be hundreds of MB
def _read_group(path: str, stamp: str, column: str, group: int) -> Any:
    with _open_parquet(to_path_or_url(path)) as table:
        return table.read_row_group(group, columns=[column]).column(column)
