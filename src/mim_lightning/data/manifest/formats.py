"""The file formats of a table (CSV, JSONL, Parquet, Arrow streams): column names, and an iterator over rows.

Rows have the file's own column names. They are numbered as an editor shows the lines of a text, or from 1. A line that
is not a row yields a RowError. Images inside Parquet and Arrow files are not read: their cells become TableCells.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from mim_lightning.data.images.reader import TableCell
from mim_lightning.data.manifest.decoding import TextFormat, TextLines, advise_encoding, is_text, open_lines
from mim_lightning.data.manifest.rows import RowError
from mim_lightning.io.paths import PathOrUrl, open_binary

Rows = Iterator[tuple[int, dict[str, Any] | RowError]]
ReadRows = Callable[[Set[str], Set[str], bool], Rows]  # wanted columns, those of images, whether to read all others too
NUM_PEEKED = 1000  # rows of JSONL whose keys together are its columns
MAX_CELL = 1 << 24  # characters
MAX_HEADER = 100  # lines
END_OF_FILE = "\x1a"  # a character that old systems append
DELIMITERS = (",", ";", "\t", "|")  # that a header may have, in order of preference
JSON_LINES = (".jsonl", ".ndjson")
BATCH_SIZE = 1000  # rows of a Parquet file read at once, without their images
IMAGE_BATCH_SIZE = 64  # rows read at once with their images


def fold(name: str) -> str:
    """Return a column name without case, blanks, hyphens and underscores."""
    return re.sub(r"[\s_\-\ufeff]+", "", name).casefold()


# --- CSV and JSONL --------------------------------------------------------------------------------------


def open_text(path: PathOrUrl, settings: TextFormat, wanted: Set[str]) -> tuple[list[str], Rows, str]:
    """Return the columns of a CSV or JSONL file, its rows, and a note for the log ("": none).

    Args:
        wanted: names of columns that the header should have; they decide between delimiters.

    Raises:
        ValueError: the header is not readable; while rows are read: the file is damaged, or a cell too long.
    """
    lines = open_lines(path, settings)
    note = f"read as {lines.encoding}, without a byte order mark" if lines.is_guessed else ""
    if lines.suffix in JSON_LINES:
        return *_open_jsonl(lines, settings), note
    return *_open_csv(lines, settings, wanted), note


def _open_csv(lines: TextLines, settings: TextFormat, wanted: Set[str]) -> tuple[list[str], Rows]:
    csv.field_size_limit(MAX_CELL)  # of the process; 131,072 is less than some descriptions have
    iterator, number, separator = iter(lines), 0, settings.separator
    header: list[str] = []
    for line in iterator:
        number += 1
        if not header and line[:4].lower() == "sep=" and len(line.strip()) <= len("sep=;"):  # for Excel alone
            separator = separator or line[4:5].strip("\r\n") or None
        elif header or line.strip(f" \r\n\t;,|{separator or ''}"):
            header.append(line)
            if sum(part.count('"') for part in header) % 2 == 0 or len(header) == MAX_HEADER:
                break
    if not header:
        return [], iter(())
    if not all(map(is_text, header)):
        raise ValueError(f"{lines.path}: {advise_encoding(''.join(header), lines.encoding, settings)}")
    if any("\0" in part for part in header):
        raise ValueError(f"{lines.path}: the header contains a NUL character; save the table as CSV (UTF-8) again")
    if separator is None:
        folded, choices = set(map(fold, wanted)), DELIMITERS if lines.suffix != ".tsv" else ("\t", *DELIMITERS)
        found = {choice: _parse_header(lines, header, choice) for choice in choices}
        # most of the wanted columns, then most columns
        separator = max(choices, key=lambda choice: (len(folded & set(map(fold, found[choice]))), len(found[choice])))
    columns = [name.strip() for name in _parse_header(lines, header, separator)]
    # where the header has a blank after each delimiter, cells have one before their quote
    reader = _CountingReader(iterator, separator, is_spaced=f"{separator} " in "".join(header))
    return columns, _csv_rows(lines, reader, number, columns, settings)


def _parse_header(lines: TextLines, header: Sequence[str], separator: str) -> list[str]:
    try:
        return next(csv.reader(header, delimiter=separator, skipinitialspace=separator != " "))
    except csv.Error as error:
        raise ValueError(f"{lines.path}: not a CSV table ({error})") from error


class _CountingReader:
    """A CSV reader that counts the quotes in the lines of its last row."""

    def __init__(self, lines: Iterator[str], separator: str, is_spaced: bool) -> None:
        self.num_quotes = 0
        self._reader = csv.reader(self._counted(lines), delimiter=separator, skipinitialspace=is_spaced)

    @property
    def num_lines(self) -> int:
        return self._reader.line_num

    def next(self) -> list[str] | None:
        """Return the cells of the next row, None at the end."""
        self.num_quotes = 0
        return next(self._reader, None)

    def _counted(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            self.num_quotes += line.count('"')
            yield line


def _csv_rows(
    lines: TextLines, reader: _CountingReader, num_before: int, columns: Sequence[str], settings: TextFormat
) -> Rows:
    pending: tuple[int, list[str]] | None = None  # a row that is complete only if another follows it
    while True:
        first = num_before + reader.num_lines + 1
        try:
            cells = reader.next()
        except csv.Error as error:  # lines without a break inside can raise no other
            reason = f"a cell of more than {MAX_CELL:,} characters; is a closing quote missing?"
            raise ValueError(f"{lines.path}, row {first}: {reason}") from error
        if pending is not None and cells is not None:
            yield pending[0], _csv_row(pending[1], columns, lines.encoding, settings)
        elif pending is not None:
            yield (
                pending[0],
                RowError("", "an unclosed quote begins here: one cell has the rest of the file"),
            )
        if cells is None:
            return
        pending = None
        if not any(cell.strip().strip(END_OF_FILE) for cell in cells):
            continue
        if reader.num_quotes % 2 and num_before + reader.num_lines > first:
            pending = first, cells
        else:
            yield first, _csv_row(cells, columns, lines.encoding, settings)


def _csv_row(
    cells: Sequence[str], columns: Sequence[str], encoding: str, settings: TextFormat
) -> dict[str, Any] | RowError:
    """Return the row of some cells, or why it is not one; cells of columns without a name are left out."""
    if len(cells) < len(columns) or any(map(str.strip, cells[len(columns) :])):
        return RowError("", f"{len(cells)} cells, the header has {len(columns)}")
    for column, cell in zip(columns, cells, strict=False):
        if not is_text(cell):
            return RowError(column, advise_encoding(cell, encoding, settings))
        if "\0" in cell:
            return RowError(column, "contains a NUL character; save the table as CSV (UTF-8) again")
    return {column: cell for column, cell in zip(columns, cells, strict=False) if column}


def _open_jsonl(lines: TextLines, settings: TextFormat) -> tuple[list[str], Rows]:
    """Return the columns and rows of JSONL; a key that a row lacks is an empty cell.

    Raises:
        ValueError: not one of the first thousand lines is a JSON object.
    """
    rows: Rows = ((i, _parse_json(line, lines.encoding, settings)) for i, line in enumerate(lines, 1) if line.strip())
    first = list(islice(rows, NUM_PEEKED))
    # many engines leave out the keys of empty cells
    columns = dict.fromkeys(name for _, row in first if isinstance(row, dict) for name in row)
    if first and not columns:
        number, error = first[0]
        raise ValueError(f"{lines.path}, row {number}: {error or 'a JSON object without keys'}")
    return list(columns), chain(first, rows)


def _parse_json(line: str, encoding: str, settings: TextFormat) -> dict[str, Any] | RowError:
    """Return the row of a line, or why it is not one."""
    if not is_text(line):
        return RowError("", advise_encoding(line, encoding, settings))
    try:
        row = json.loads(line)
        if "\\ud" in line.lower():  # half of a character that takes two escapes is not text
            json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        return RowError("", f"not JSON ({error.msg})")
    except RecursionError:
        return RowError("", "not readable as JSON (nested too deeply)")
    except ValueError as error:
        return RowError("", f"not JSON ({error})")
    return row if isinstance(row, dict) else RowError("", "not a JSON object; JSONL has one on each line")


# --- Parquet and Arrow ----------------------------------------------------------------------------------


def open_parquet(path: PathOrUrl) -> tuple[list[str], ReadRows]:
    """Return the columns of a Parquet file, and a function that reads its rows.

    Its arguments: the wanted columns, those of them that have images (if their type can hold any), and whether to read
    all other columns too, except for those of bytes.

    Raises:
        ValueError: not a Parquet file, or a damaged one.
    """
    import pyarrow.parquet

    with _arrow_errors_named(path, "Parquet"):
        file = pyarrow.parquet.ParquetFile(path if isinstance(path, Path) else open_binary(path))
        schema = file.schema_arrow

    def read(wanted: Set[str], images: Set[str], all_plain: bool) -> Rows:
        number, (pointed, plain) = 0, _divide(schema, wanted, images, all_plain)
        with file, _arrow_errors_named(path, "Parquet"):
            for group in range(file.num_row_groups):
                counts = {column: _count_in_group(file, group, column) for column in pointed}
                first = number
                for batch in file.iter_batches(BATCH_SIZE, row_groups=[group], columns=plain):
                    part = {name: values[number - first :] for name, values in counts.items()}
                    yield from _numbered(path, batch, part, number)
                    number += batch.num_rows

    return schema.names, read


def open_arrow(path: PathOrUrl) -> tuple[list[str], ReadRows]:
    """Do the same for a local file of Arrow's stream format, in which Hugging Face data sets are stored."""
    import pyarrow

    with _arrow_errors_named(path, "Arrow"):
        reader = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))

    def read(wanted: Set[str], images: Set[str], all_plain: bool) -> Rows:
        number, (pointed, plain) = 0, _divide(reader.schema, wanted, images, all_plain)
        with _arrow_errors_named(path, "Arrow"):
            for batch in reader:
                counts = {column: _count_images(batch.column(column)) for column in pointed}
                yield from _numbered(path, batch.select(plain), counts, number)
                number += batch.num_rows

    return reader.schema.names, read


def holds_bytes(kind: Any) -> bool:
    """Is this the type of bytes, of the Hugging Face struct {bytes, path}, or of a list of either?"""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        return holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _divide(schema: Any, wanted: Set[str], images: Set[str], all_plain: bool) -> tuple[list[str], list[str]]:
    """Return the columns whose images are pointed at, and those that are read."""
    heavy = {field.name for field in schema if holds_bytes(field.type)}
    pointed = [name for name in schema.names if name in heavy and name in images]
    plain = [name for name in schema.names if name in wanted or (all_plain and name not in heavy)]
    return pointed, [name for name in plain if name not in pointed]


def _count_in_group(file: Any, group: int, column: str) -> np.ndarray:
    """Return how many images each row of a row group has; images are read only if some are missing."""
    metadata = file.metadata.row_group(group)
    leaves = [metadata.column(i) for i in range(metadata.num_columns)]
    stored = next((leaf for leaf in leaves if leaf.path_in_schema in (column, f"{column}.bytes")), None)
    statistics = stored.statistics if stored is not None else None
    if statistics is not None and statistics.has_null_count and statistics.null_count == 0:
        return np.ones(metadata.num_rows, dtype=np.int64)
    batches = file.iter_batches(IMAGE_BATCH_SIZE, row_groups=[group], columns=[column])
    return np.concatenate([_count_images(batch.column(0)) for batch in batches])


def _count_images(cells: Any) -> np.ndarray:
    """Return the number of images in each cell of a column; lists may have several."""
    from pyarrow import compute, types

    if types.is_list(cells.type) or types.is_large_list(cells.type):
        return compute.fill_null(compute.list_value_length(cells), 0).to_numpy(zero_copy_only=False)
    is_there = cells.is_valid()
    if types.is_struct(cells.type):
        stored, path = cells.field("bytes"), cells.field("path")
        is_there = compute.and_(is_there, compute.or_(stored.is_valid(), path.is_valid()))
    return is_there.to_numpy(zero_copy_only=False).astype(np.int64)


def _numbered(path: PathOrUrl, batch: Any, counts: dict[str, np.ndarray], num_before: int) -> Rows:
    # a batch without columns has rows all the same
    rows = batch.to_pylist() if batch.num_columns else [{} for _ in range(batch.num_rows)]
    for i, row in enumerate(rows):
        cells = {
            column: [TableCell(str(path), num_before + i, column, item) for item in range(values[i])]
            for column, values in counts.items()
        }
        yield num_before + i + 1, row | cells


@contextmanager
def _arrow_errors_named(path: PathOrUrl, kind: str) -> Iterator[None]:
    """Turn the reader's errors about a damaged file into a ValueError that names the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a {kind} table ({' '.join(str(error).split())})") from error
