"""A table in one file or many (CSV, JSONL, Parquet, Arrow), and its rows under our column names.

A file's column is found by the name that is wanted: the same name, or one that differs in case, blanks, hyphens and
underscores alone, where only one column could be meant. Every row comes with its origin, "products.csv, row 7".
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from mim_lightning.data.manifest.decoding import COMPRESSED, TextFormat, text_suffix
from mim_lightning.data.manifest.formats import ReadRows, fold, open_arrow, open_parquet, open_text
from mim_lightning.data.manifest.rows import OnIssue, Origin, RowError, raise_issue
from mim_lightning.display.text import plain
from mim_lightning.fields import DECLARED
from mim_lightning.io.paths import PathOrUrl, find_files, io_errors_as_value_error, parent_of, suffix

log = logging.getLogger(__name__)

PARQUET = ".parquet"
TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
SUFFIXES = (*TEXT_SUFFIXES, PARQUET, *(text + packed for text in TEXT_SUFFIXES for packed in COMPRESSED))  # in a folder
WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".ods")
MAX_LISTED, MAX_NAME = 50, 60  # columns of a file that an error names, and characters of each
IMAGE = "image"  # our name of the column that may contain encoded images
ColumnNames = Mapping[str, str | None]  # our column name -> the file's, None where the file has no such column


@dataclass(frozen=True)
class TableSpec:
    """A table's name in config, the columns we know, and those a file must have unless config maps them to null."""

    name: str
    known: tuple[str, ...]
    required: tuple[str, ...]
    others: str | None = None  # the key of a row under which all other columns are, by their own names
    fields: Mapping[str, str] = field(default_factory=dict)  # declared text field -> the file's column


@dataclass(frozen=True)
class TablePart:
    """One file of a table."""

    path: PathOrUrl
    name: str  # in origins
    num_before: int = 0  # rows of earlier parts of the same name
    constants: Mapping[str, Any] = field(default_factory=dict)  # columns that the file lacks, the same in all rows
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)  # column of numbers -> the label of each


@dataclass(frozen=True)
class Table:
    """Files whose rows belong together."""

    name: str  # in errors
    root: PathOrUrl  # of relative image paths
    parts: tuple[TablePart, ...]
    text_format: TextFormat = field(default_factory=TextFormat)  # of CSV and JSONL files


def open_table(path: PathOrUrl, kind: str, text_format: TextFormat | None = None) -> Table:
    """Return the table in a file, in all files of a folder, or in those that a pattern with * matches.

    Raises:
        ValueError: no such file, or one that is not a table; `kind` ("products") is its name in the message.
    """
    files = find_files(path, SUFFIXES)
    if not files:
        raise ValueError(f"{path}: no such file ({kind} table)")
    for file in files:
        if text_suffix(file) not in (*TEXT_SUFFIXES, ".zip") and suffix(file) != PARQUET:
            workbook = "an Excel workbook, save it as CSV (UTF-8); " if suffix(file) in WORKBOOKS else ""
            raise ValueError(
                f"{file}: {workbook}a {kind} table ends in .csv, .parquet or .jsonl, or .csv.gz and the like"
            )
    is_folder = files[0] != path and "*" not in str(path)
    root, parts = path if is_folder else parent_of(path), tuple(TablePart(file, str(file)) for file in files)
    return Table(str(path), root, parts, text_format or TextFormat(table=kind))


def read_rows(
    table: Table,
    spec: TableSpec,
    columns: ColumnNames,
    on_issue: OnIssue = raise_issue,
    metadata: Sequence[str] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (origin, row in our column names). Row numbers are the lines an editor shows, header included.

    Cells with images become lists of TableCells. `metadata` names the further columns to read, None: all. A line that
    is not a row is reported to `on_issue`.

    Raises:
        ValueError: a file is missing or damaged, or lacks a column.
    """
    for ours in columns:
        validate_name(ours, spec.known, f"data.source.columns.{spec.name}", "column")
    names = {ours: columns.get(ours, ours) for ours in spec.known}
    needed = {ours: name for ours, name in names.items() if name and (ours in spec.required or name != ours)}
    keys = dict.fromkeys(metadata or (), "data.source.metadata")
    keys |= {name: f"data.source.fields.{ours}" for ours, name in spec.fields.items()}
    keys |= {name: f"data.source.columns.{spec.name}.{ours}" for ours, name in names.items() if name}
    all_plain = spec.others is not None and metadata is None
    for part in table.parts:
        with io_errors_as_value_error(part.path):
            file = _open(part.path, set(keys), table.text_format)
            found = [*file.columns, *(part.constants.keys() - file.columns)]
            matches = _match_columns(part.name, found, keys)
            given = {column: name for name, column in matches.items()}
            _validate_columns(part, [given.get(name, name) for name in found], needed, spec, metadata or ())
            _log_notes(part.name, file, matches)
            images = {matches.get(name, name) for name in (names.get(IMAGE),) if name}
            for number, raw in file.rows({matches.get(name, name) for name in keys}, images, all_plain):
                origin = Origin(part.name, number + part.num_before)
                if isinstance(raw, RowError):
                    on_issue(raw.at(spec.name, origin, ""))
                else:
                    row = {given.get(name, name): cell for name, cell in raw.items()} if given else raw
                    yield origin, _renamed(part, row, names, spec)


def validate_name(name: str, known: tuple[str, ...], where: str, kind: str) -> None:
    """Raise a ValueError with the closest known name, if the name is not known."""
    if name not in known:
        hint = difflib.get_close_matches(name, known, 1) or known
        raise ValueError(f"{where}: no {kind} '{name}'; did you mean {' or '.join(hint)}?")


@dataclass(frozen=True)
class _File:
    """An open file: its columns, and a function that reads the wanted ones of its rows (see `open_parquet`)."""

    columns: list[str]
    rows: ReadRows
    note: str = ""


def _open(path: PathOrUrl, wanted: Set[str], text_format: TextFormat) -> _File:
    if text_suffix(path) in (*TEXT_SUFFIXES, ".zip"):
        columns, rows, note = open_text(path, text_format, wanted)
        return _File(columns, lambda *_: rows, note)
    return _File(*(open_parquet(path) if suffix(path) == PARQUET else open_arrow(path)))


@cache  # a process may read a file twice
def _log_once(note: str) -> None:
    log.warning(note)


def _log_notes(name: str, file: _File, matches: Mapping[str, str]) -> None:
    """Log what is read otherwise than the file has it."""
    notes = [file.note] if file.note else []
    notes += [f"column '{column}' is read as '{name}'" for name, column in matches.items()]
    repeated = sorted({column for column in file.columns if column and file.columns.count(column) > 1})
    notes += [f"the last of {file.columns.count(column)} columns '{column}' is read" for column in repeated]
    if notes:
        _log_once(f"{name}: {', '.join(notes)}")


def _validate_columns(
    part: TablePart, found: Sequence[str], needed: Mapping[str, str], spec: TableSpec, metadata: Sequence[str]
) -> None:
    for ours, name in needed.items():
        if name not in found and found:
            raise _missing_column(part.name, found, name, f"data.source.columns.{spec.name}.{ours}")
    for ours, name in spec.fields.items():
        if name not in found and found:
            raise _missing_column(part.name, found, name, f"data.source.fields.{ours}")
    for name in metadata:
        if name not in found and found:
            raise ValueError(f"{part.name}: missing column '{name}', named by data.source.metadata")
    for name in {*needed.values(), *spec.fields.values(), *metadata}:
        if found.count(name) > 1:
            raise ValueError(f"{part.name}: {found.count(name)} columns are called '{name}'")


def _match_columns(origin: str, found: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return wanted name -> the file's column, of those that are equal but for what `fold` removes.

    Args:
        origin: of the header, for errors.
        found: the columns of the file.
        wanted: name -> key of config that names it.

    Raises:
        ValueError: several columns could be meant.
    """
    matches: dict[str, str] = {}
    for name, key in wanted.items():
        if name in found:
            continue
        close = [column for column in dict.fromkeys(found) if column not in wanted and fold(column) == fold(name)]
        if len(close) > 1:
            raise ValueError(
                f"{origin}: {' and '.join(map(repr, close))} could both be '{name}'; choose by {key}=<column>"
            )
        if close and close[0] not in matches.values():
            matches[name] = close[0]
    return matches


def _missing_column(origin: str, found: Collection[str], name: str, key: str) -> ValueError:
    """Return the error for a column that a file lacks; it names the closest column, and the key."""
    close = difflib.get_close_matches(fold(name), map(fold, found), 1)
    meant = next((column for column in found if close and fold(column) == close[0]), None)
    another = (
        f"name another with {key}=<column>"
        if meant is None or len(meant) > MAX_NAME
        else f"did you mean '{meant}'? Then give {_quoted(key, meant)}"
    )
    columns = sorted(plain(column, MAX_NAME) for column in found if column)
    more = f" and {len(columns) - MAX_LISTED} more" if len(columns) > MAX_LISTED else ""
    return ValueError(
        f"{origin}: missing column '{name}', it has {columns[:MAX_LISTED]}{more}; {another}, or null if there is none"
    )


def _quoted(key: str, value: str) -> str:
    """Return an argument of the command line, quoted for Hydra and for the shell where that is needed."""
    return f"{key}={value}" if re.fullmatch(r"[\w.\-]+", value) else f"""'{key}="{value}"'"""


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
