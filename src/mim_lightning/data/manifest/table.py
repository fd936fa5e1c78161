"""Tables as a shop keeps them: CSV, Parquet or JSONL, in one file or many, row by row, under our column names.

A Table, what it should hold and the user's own column names come in; (origin, row) goes out, where the origin names
file and line for whoever finds fault with the row. `manifest` and the sources read their tables here.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from mim_lightning.data.manifest.arrow import open_arrow, open_parquet
from mim_lightning.data.manifest.decoding import COMPRESSED, TextFormat, text_ending
from mim_lightning.data.manifest.header import match_columns, missing_column
from mim_lightning.data.manifest.row_issue import OnIssue, RowError, raise_issue
from mim_lightning.data.manifest.text import Rows, open_text
from mim_lightning.fields import DECLARED
from mim_lightning.io.paths import PathOrUrl, find_files, io_errors_as_value_error, parent_of, suffix

log = logging.getLogger(__name__)

PARQUET = ".parquet"
TEXT_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
ENDINGS = (*TEXT_ENDINGS, PARQUET, *(text + packed for text in TEXT_ENDINGS for packed in COMPRESSED))  # in a folder
WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".ods")
PICTURES = "image"  # our name of the column that may hold pictures themselves
ColumnNames = Mapping[str, str | None]  # our column name -> the file's, None where the file has no such column


@dataclass(frozen=True)
class TableSpec:
    """A table's name in config, the columns we know, and those a file must have unless it is told otherwise."""

    name: str
    known: tuple[str, ...]
    required: tuple[str, ...]
    others: str | None = None  # the key under which the columns that are not known come, by their own names
    fields: Mapping[str, str] = field(default_factory=dict)  # declared text field -> the file's column


@dataclass(frozen=True)
class TablePart:
    """One file of a table."""

    place: PathOrUrl
    name: str  # what origins call it
    num_before: int = 0  # rows of the parts before that go by the same name
    constants: Mapping[str, Any] = field(default_factory=dict)  # columns that the file lacks, the same in all rows
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)  # column of numbers -> what they stand for


@dataclass(frozen=True)
class Table:
    """Files whose rows belong together."""

    name: str  # what errors call it
    root: PathOrUrl  # where relative paths of pictures start
    parts: tuple[TablePart, ...]
    text_format: TextFormat = field(default_factory=TextFormat)  # of those that are CSV or JSONL


def open_table(place: PathOrUrl, kind: str, text_format: TextFormat | None = None) -> Table:
    """Return the table in a file, in all files of a folder, or in those that a pattern with * matches.

    Raises:
        ValueError: no such file, or one that is no table; `kind` says what it would be.
    """
    files = find_files(place, ENDINGS)
    if not files:
        raise ValueError(f"{place}: no such file ({kind} table)")
    for file in files:
        if text_ending(file) not in (*TEXT_ENDINGS, ".zip") and suffix(file) != PARQUET:
            workbook = "an Excel workbook, save it as CSV (UTF-8); " if suffix(file) in WORKBOOKS else ""
            raise ValueError(
                f"{file}: {workbook}a {kind} table ends in .csv, .parquet or .jsonl, or .csv.gz and the like"
            )
    is_folder = files[0] != place and "*" not in str(place)
    root, parts = place if is_folder else parent_of(place), tuple(TablePart(file, str(file)) for file in files)
    return Table(str(place), root, parts, text_format or TextFormat(table=kind))


def read_rows(
    table: Table,
    spec: TableSpec,
    columns: ColumnNames,
    on_issue: OnIssue = raise_issue,
    metadata: Sequence[str] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (origin, row in our column names). Row numbers are the lines an editor shows, header included.

    Cells with pictures come as lists of TableCells. `metadata` names the further columns to read, None: all. A line
    that is no row is reported to `on_issue`.

    Raises:
        ValueError: a file is missing or damaged, or lacks a column.
    """
    for ours in columns:
        require_name(ours, spec.known, f"data.source.columns.{spec.name}", "column")
    names = {ours: columns.get(ours, ours) for ours in spec.known}
    needed = {ours: name for ours, name in names.items() if name and (ours in spec.required or name != ours)}
    keys = dict.fromkeys(metadata or (), "data.source.metadata")
    keys |= {name: f"data.source.fields.{ours}" for ours, name in spec.fields.items()}
    keys |= {name: f"data.source.columns.{spec.name}.{ours}" for ours, name in names.items() if name}
    all_plain = spec.others is not None and metadata is None
    for part in table.parts:
        with io_errors_as_value_error(part.place):
            file = _open(part.place, set(keys), table.text_format)
            found = [*file.columns, *(part.constants.keys() - file.columns)]
            matches = match_columns(part.name, found, keys)
            given = {column: name for name, column in matches.items()}
            _require_columns(part, [given.get(name, name) for name in found], needed, spec, metadata or ())
            _tell(part.name, file, matches)
            pictures = {matches.get(name, name) for name in (names.get(PICTURES),) if name}
            for number, raw in file.rows({matches.get(name, name) for name in keys}, pictures, all_plain):
                origin = f"{part.name}, row {number + part.num_before}"
                if isinstance(raw, RowError):
                    on_issue(raw.at(spec.name, origin, ""))
                else:
                    row = {given.get(name, name): cell for name, cell in raw.items()} if given else raw
                    yield origin, _renamed(part, row, names, spec)


def require_name(name: str, known: tuple[str, ...], where: str, kind: str) -> None:
    """Raise a ValueError with the closest known name, if the name is not known."""
    if name not in known:
        hint = difflib.get_close_matches(name, known, 1) or known
        raise ValueError(f"{where}: no {kind} '{name}'; did you mean {' or '.join(hint)}?")


@dataclass(frozen=True)
class _File:
    """An open file: its columns, and what reads the wanted ones of its rows (see `open_parquet`)."""

    columns: list[str]
    rows: Callable[[Set[str], Set[str], bool], Rows]
    note: str = ""


def _open(place: PathOrUrl, wanted: Set[str], text_format: TextFormat) -> _File:
    ending = text_ending(place)
    if ending in (*TEXT_ENDINGS, ".zip"):
        columns, rows, note = open_text(place, text_format, wanted)
        return _File(columns, lambda *_: rows, note)
    return _File(*(open_parquet(place) if ending == PARQUET else open_arrow(place)))


@cache  # of each file once a process, which may read it twice
def _tell_once(note: str) -> None:
    log.warning(note)


def _tell(name: str, file: _File, matches: Mapping[str, str]) -> None:
    """Say what was read otherwise than it stands there."""
    notes = [file.note] if file.note else []
    notes += [f"column '{column}' is read as '{name}'" for name, column in matches.items()]
    repeated = sorted({column for column in file.columns if column and file.columns.count(column) > 1})
    notes += [f"of {file.columns.count(column)} columns '{column}' the last is read" for column in repeated]
    if notes:
        _tell_once(f"{name}: {', '.join(notes)}")


def _require_columns(
    part: TablePart, found: Sequence[str], needed: Mapping[str, str], spec: TableSpec, metadata: Sequence[str]
) -> None:
    for ours, name in needed.items():
        if name not in found and found:
            raise missing_column(part.name, found, name, f"data.source.columns.{spec.name}.{ours}")
    for ours, name in spec.fields.items():
        if name not in found and found:
            raise missing_column(part.name, found, name, f"data.source.fields.{ours}")
    for name in metadata:
        if name not in found and found:
            raise ValueError(f"{part.name}: missing column '{name}', named by data.source.metadata")
    for name in {*needed.values(), *spec.fields.values(), *metadata}:
        if found.count(name) > 1:
            raise ValueError(f"{part.name}: {found.count(name)} columns are called '{name}'")


def _renamed(
    part: TablePart, raw: Mapping[str, Any], names: Mapping[str, str | None], spec: TableSpec
) -> dict[str, Any]:
    for column, labels in part.labels.items():
        number = raw.get(column)
        raw = {**raw, column: labels[number] if number is not None and 0 <= number < len(labels) else None}
    if part.constants:
        raw = {**part.constants, **raw}
    row = {ours: raw.get(name) if name else None for ours, name in names.items()}
    if spec.fields:
        row[DECLARED] = {ours: raw.get(name) for ours, name in spec.fields.items()}
    if spec.others is not None:
        used = {*names, *names.values()}
        row[spec.others] = {name: value for name, value in raw.items() if name not in used}
    return row
