"""Tables as a shop keeps them: CSV, Parquet or JSONL, row by row, under our column names.

A path, what the table should hold and the user's own column names come in; (origin, row) goes out, where the
origin names file and line for whoever finds fault with the row. `manifest` reads both its tables here.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_Row = tuple[int, dict[str, Any]]
ColumnNames = Mapping[str, str | None]  # our column name -> the file's, None where the file has no such column


@dataclass(frozen=True)
class TableSpec:
    """A table's name in config, the columns we know, and those a file must have unless it is told otherwise."""

    name: str
    known: tuple[str, ...]
    required: tuple[str, ...]
    others: str | None = None  # the key under which the columns that are not known come, by their own names


def read_rows(path: Path, table: TableSpec, columns: ColumnNames) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (origin, row in our column names). Row numbers are the lines an editor shows, header included.

    Raises:
        ValueError: the file is missing or damaged, or lacks a column.
    """
    for ours in columns:
        require_name(ours, table.known, f"data.source.columns.{table.name}", "column")
    if not path.is_file():
        raise ValueError(f"{path}: no such file ({table.name} table)")
    reader = {".csv": _csv_rows, ".parquet": _parquet_rows, ".jsonl": _jsonl_rows}.get(path.suffix)
    if reader is None:
        raise ValueError(f"{path}: a {table.name} table ends in .csv, .parquet or .jsonl")
    names = {ours: columns.get(ours, ours) for ours in table.known}
    needed = {ours: name for ours, name in names.items() if name and ours in {*table.required, *columns}}
    for number, raw in _readable(path, reader(path)):
        for ours, name in needed.items():
            if name not in raw:
                raise ValueError(
                    f"{path}, row {number}: missing column '{name}', it has {sorted(raw)}; "
                    f"name another with data.source.columns.{table.name}.{ours}=<column>, or null if there is none"
                )
        row = {ours: raw.get(name) if name else None for ours, name in names.items()}
        if table.others is not None:
            used = {*table.known, *names.values()}
            row[table.others] = {name: value for name, value in raw.items() if name not in used}
        yield f"{path}, row {number}", row


def table_id(path: Path) -> str:
    """Return a short text that changes with the file's content.

    Raises:
        ValueError: no such file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:16]


def require_name(name: str, known: tuple[str, ...], where: str, kind: str) -> None:
    """Raise a ValueError with the closest known name, if the name is not known."""
    if name not in known:
        hint = difflib.get_close_matches(name, known, 1) or known
        raise ValueError(f"{where}: no {kind} '{name}'; did you mean {' or '.join(hint)}?")


def _readable(path: Path, rows: Iterator[_Row]) -> Iterator[_Row]:
    """Pass rows on; whatever a reader says of a damaged file becomes an error that names the file."""
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV table ({error})") from error


def _csv_rows(path: Path) -> Iterator[_Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}, row {reader.line_num}: not as many cells as the header has")
            yield reader.line_num, row


def _jsonl_rows(path: Path) -> Iterator[_Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, row {number}: not JSON ({error.msg})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, row {number}: not a JSON object")
            yield number, row


def _parquet_rows(path: Path) -> Iterator[_Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a Parquet table ({error})") from error
