"""CSV and JSONL: a list of columns and an iterator over rows, numbered as an editor shows the lines.

A place comes in; rows by the file's own column names go out, or in place of a line that is no row what is wrong with
it. `table` calls it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import chain, islice
from typing import IO, Any

from mim_lightning.data.places.addresses import Place, open_binary

Rows = Iterator[tuple[int, dict[str, Any] | str]]
NUM_PEEKED = 1000  # rows of JSONL whose keys together are its columns
NOT_UTF8 = "not UTF-8; save it as UTF-8"


def open_csv(place: Place) -> tuple[list[str], Rows]:
    """Return the columns of a CSV file, and its rows.

    Raises:
        ValueError: the header is not readable; while rows are read: quotes that do not end, and the like.
    """
    file = _open_text(place)
    reader = csv.DictReader(file)
    try:
        columns = list(reader.fieldnames or ())
    except csv.Error as error:
        raise ValueError(f"{place}: not a CSV table ({error})") from error
    if not all(map(_is_text, columns)):
        raise ValueError(f"{place}: {NOT_UTF8}")
    return columns, _csv_rows(place, file, reader)


def _csv_rows(place: Place, file: IO[str], reader: csv.DictReader[str]) -> Rows:
    with file:
        try:
            for row in reader:
                yield reader.line_num, _fault_of(row) or row
        except csv.Error as error:
            raise ValueError(f"{place}, row {reader.line_num}: not a CSV table ({error})") from error


def _fault_of(row: dict[Any, Any]) -> str | None:
    if None in row or None in row.values():
        return "not as many cells as the header has"
    return None if all(map(_is_text, row.values())) else NOT_UTF8


def open_jsonl(place: Place) -> tuple[list[str], Rows]:
    """Return the columns of a JSONL file, and its rows; a key that a row lacks is an empty cell.

    Raises:
        ValueError: not one of the first thousand lines is a JSON object.
    """
    rows = _jsonl_rows(_open_text(place))
    first = list(islice(rows, NUM_PEEKED))
    # many engines leave out the keys of empty cells
    columns = dict.fromkeys(name for _, row in first if isinstance(row, dict) for name in row)
    if first and not columns:
        raise ValueError(f"{place}, row {first[0][0]}: {first[0][1] or 'not one key'}")
    return list(columns), chain(first, rows)


def _jsonl_rows(file: IO[str]) -> Rows:
    with file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parse(line)


def _parse(line: str) -> dict[str, Any] | str:
    """Return the row of a line, or what is wrong with it."""
    if not _is_text(line):
        return NOT_UTF8
    try:
        row = json.loads(line)
        if "\\ud" in line.lower():  # half of a character that takes two escapes is no text
            json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg})"
    except ValueError as error:
        return f"not JSON ({error})"
    return row if isinstance(row, dict) else "not a JSON object"


def _open_text(place: Place) -> IO[str]:
    # what is not UTF-8 is told by row, where it stands
    return io.TextIOWrapper(open_binary(place), encoding="utf-8-sig", errors="surrogateescape", newline="")


def _is_text(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
