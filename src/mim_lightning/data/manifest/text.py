"""CSV and JSONL: a list of columns and the rows below it, numbered as an editor shows the lines.

A place and a TextFormat come in; the columns and an iterator over rows go out, by the file's own column names, or in
place of a line that is no row what is wrong with it. `table` calls it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence, Set
from itertools import chain, islice
from typing import Any

from mim_lightning.data.manifest.decoding import TextFormat, TextLines, advise_encoding, is_text, open_lines
from mim_lightning.data.manifest.header import fold
from mim_lightning.data.manifest.row_issue import RowError
from mim_lightning.io.paths import PathOrUrl

Rows = Iterator[tuple[int, dict[str, Any] | RowError]]
NUM_PEEKED = 1000  # rows of JSONL whose keys together are its columns
MAX_CELL = 1 << 24  # characters
MAX_HEADER = 100  # lines
END_OF_FILE = "\x1a"  # a character that old systems leave there
DELIMITERS = (",", ";", "\t", "|")  # that a header may speak for, in order of preference
JSON_LINES = (".jsonl", ".ndjson")


def open_text(place: PathOrUrl, settings: TextFormat, wanted: Set[str]) -> tuple[list[str], Rows, str]:
    """Return the columns of a CSV or JSONL file, its rows, and what was found out about it, to be told ("": nothing).

    Args:
        wanted: names of columns that the header should have: they tell the delimiter.

    Raises:
        ValueError: the header is not readable; while rows are read: the file is damaged, or a cell too long.
    """
    lines = open_lines(place, settings)
    note = f"read as {lines.encoding}, without a byte order mark" if lines.is_guessed else ""
    if lines.ending in JSON_LINES:
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
        raise ValueError(f"{lines.place}: {advise_encoding(''.join(header), lines.encoding, settings)}")
    choices = DELIMITERS if lines.ending != ".tsv" else ("\t", *DELIMITERS)
    separator = separator or _find_delimiter(lines, header, wanted, choices)
    columns = [name.strip() for name in _parse_header(lines, header, separator)]
    # where the header has a blank after each delimiter, cells have one before their quote
    reader = _CountingReader(iterator, separator, is_spaced=f"{separator} " in "".join(header))
    return columns, _csv_rows(lines, reader, number, columns, settings)


def _parse_header(lines: TextLines, header: Sequence[str], separator: str) -> list[str]:
    try:
        return next(csv.reader(header, delimiter=separator, skipinitialspace=separator != " "))
    except csv.Error as error:
        raise ValueError(f"{lines.place}: not a CSV table ({error})") from error


def _find_delimiter(lines: TextLines, header: Sequence[str], wanted: Set[str], choices: Sequence[str]) -> str:
    """Return the delimiter by which most of the wanted columns stand in the header; else that of most columns."""
    folded = set(map(fold, wanted))
    found = {choice: _parse_header(lines, header, choice) for choice in choices}
    return max(choices, key=lambda choice: (len(folded.intersection(map(fold, found[choice]))), len(found[choice])))


class _CountingReader:
    """A CSV reader that knows how many quotes stand in the lines of its last row."""

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
    held: tuple[int, list[str]] | None = None  # a row that is whole only if another comes after it
    while True:
        first = num_before + reader.num_lines + 1
        try:
            cells = reader.next()
        except csv.Error as error:  # the only one that lines without a break in them leave
            reason = f"a cell of more than {MAX_CELL:,} characters; is there a quote that does not end?"
            raise ValueError(f"{lines.place}, row {first}: {reason}") from error
        if held is not None and cells is not None:
            yield held[0], _csv_row(held[1], columns, lines.encoding, settings)
        elif held is not None:
            yield held[0], RowError("", "a quote begins here that does not end: the rest of the file is in one cell")
        if cells is None:
            return
        held = None
        if not any(cell.strip().strip(END_OF_FILE) for cell in cells):
            continue
        if reader.num_quotes % 2 and num_before + reader.num_lines > first:
            held = first, cells
        else:
            yield first, _csv_row(cells, columns, lines.encoding, settings)


def _csv_row(
    cells: Sequence[str], columns: Sequence[str], encoding: str, settings: TextFormat
) -> dict[str, Any] | RowError:
    """Return the row of some cells, or what is wrong with it; cells of columns without a name are left out."""
    if len(cells) != len(columns):
        further = cells[len(columns) :]
        if len(cells) < len(columns) or any(map(str.strip, further)):
            return RowError("", "not as many cells as the header has")
    for column, cell in zip(columns, cells, strict=False):
        if not is_text(cell):
            return RowError(column, advise_encoding(cell, encoding, settings))
        if "\0" in cell:
            return RowError(column, "holds a NUL character, which no text has; save the table as CSV (UTF-8) again")
    return {column: cell for column, cell in zip(columns, cells, strict=False) if column}


def _open_jsonl(lines: TextLines, settings: TextFormat) -> tuple[list[str], Rows]:
    """Do the same for JSONL; a key that a row lacks is an empty cell.

    Raises:
        ValueError: not one of the first thousand lines is a JSON object.
    """
    rows = _jsonl_rows(lines, settings)
    first = list(islice(rows, NUM_PEEKED))
    # many engines leave out the keys of empty cells
    columns = dict.fromkeys(name for _, row in first if isinstance(row, dict) for name in row)
    if first and not columns:
        number, fault = first[0]
        raise ValueError(f"{lines.place}, row {number}: {fault or 'not one key'}")
    return list(columns), chain(first, rows)


def _jsonl_rows(lines: TextLines, settings: TextFormat) -> Rows:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _parse(line, lines.encoding, settings)


def _parse(line: str, encoding: str, settings: TextFormat) -> dict[str, Any] | RowError:
    """Return the row of a line, or what is wrong with it."""
    if not is_text(line):
        return RowError("", advise_encoding(line, encoding, settings))
    try:
        row = json.loads(line)
        if "\\ud" in line.lower():  # half of a character that takes two escapes is no text
            json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        return RowError("", f"not JSON ({error.msg})")
    except RecursionError:
        return RowError("", "not JSON that can be read (nested too deeply)")
    except ValueError as error:
        return RowError("", f"not JSON ({error})")
    return row if isinstance(row, dict) else RowError("", "not a JSON object; JSONL has one on each line")
