"""Tables as a shop keeps them: CSV, Parquet or JSONL, in one file or many, row by row, under our column names.

A Table, what it should hold and the user's own column names come in; (origin, row) goes out, where the origin names
file and line for whoever finds fault with the row. `manifest` and the sources read their tables here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from mim_lightning.data.places.addresses import Place, ending_of, find_files, folder_of, reaching
from mim_lightning.data.tables.arrow import open_arrow, open_parquet
from mim_lightning.data.tables.faults import Fault, OnFault, raise_fault
from mim_lightning.data.tables.text import Rows, open_csv, open_jsonl

ENDINGS = (".csv", ".parquet", ".jsonl")
PICTURES = "image"  # our name of the column that may hold pictures themselves
ColumnNames = Mapping[str, str | None]  # our column name -> the file's, None where the file has no such column


@dataclass(frozen=True)
class TableSpec:
    """A table's name in config, the columns we know, and those a file must have unless it is told otherwise."""

    name: str
    known: tuple[str, ...]
    required: tuple[str, ...]
    others: str | None = None  # the key under which the columns that are not known come, by their own names


@dataclass(frozen=True)
class TablePart:
    """One file of a table."""

    place: Place
    name: str  # what origins call it
    num_before: int = 0  # rows of the parts before that go by the same name
    constants: Mapping[str, Any] = field(default_factory=dict)  # columns that the file lacks, the same in all rows
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)  # column of numbers -> what they stand for


@dataclass(frozen=True)
class Table:
    """Files whose rows belong together."""

    name: str  # what errors call it
    root: Place  # where relative paths of pictures start
    parts: tuple[TablePart, ...]


def open_table(place: Place, kind: str) -> Table:
    """Return the table in a file, in all files of a folder, or in those that a pattern with * matches.

    Raises:
        ValueError: no such file, or one that is no table; `kind` says what it would be.
    """
    files = find_files(place, ENDINGS)
    if not files:
        raise ValueError(f"{place}: no such file ({kind} table)")
    for file in files:
        if ending_of(file) not in ENDINGS:
            raise ValueError(f"{file}: a {kind} table ends in .csv, .parquet or .jsonl")
    is_folder = files[0] != place and "*" not in str(place)
    return Table(str(place), place if is_folder else folder_of(place), tuple(TablePart(f, str(f)) for f in files))


def read_rows(
    table: Table,
    spec: TableSpec,
    columns: ColumnNames,
    on_fault: OnFault = raise_fault,
    metadata: Sequence[str] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (origin, row in our column names). Row numbers are the lines an editor shows, header included.

    Cells with pictures come as lists of TableCells. `metadata` names the further columns to read, None: all. A line
    that is no row is told to `on_fault`.

    Raises:
        ValueError: a file is missing or damaged, or lacks a column.
    """
    for ours in columns:
        require_name(ours, spec.known, f"data.source.columns.{spec.name}", "column")
    names = {ours: columns.get(ours, ours) for ours in spec.known}
    needed = {ours: name for ours, name in names.items() if name and (ours in spec.required or name != ours)}
    for part in table.parts:
        wanted = {name for name in names.values() if name} | set(metadata or ())
        all_plain = spec.others is not None and metadata is None
        with reaching(part.place):
            found, rows = _open(part.place, wanted, {names.get(PICTURES) or ""}, all_plain)
            _require_columns(part, [*found, *(part.constants.keys() - found)], needed, spec, metadata or ())
            for number, raw in rows:
                origin = f"{part.name}, row {number + part.num_before}"
                if isinstance(raw, str):
                    on_fault(Fault(spec.name, origin, "", "", raw))
                else:
                    yield origin, _renamed(part, raw, names, spec.others)


def require_name(name: str, known: tuple[str, ...], where: str, kind: str) -> None:
    """Raise a ValueError with the closest known name, if the name is not known."""
    if name not in known:
        hint = difflib.get_close_matches(name, known, 1) or known
        raise ValueError(f"{where}: no {kind} '{name}'; did you mean {' or '.join(hint)}?")


def _open(place: Place, wanted: Set[str], pictures: Set[str], all_plain: bool) -> tuple[list[str], Rows]:
    ending = ending_of(place)
    if ending in (".csv", ".jsonl"):
        return open_csv(place) if ending == ".csv" else open_jsonl(place)
    open_columns = open_parquet if ending == ".parquet" else open_arrow
    return open_columns(place, wanted, pictures, all_plain)


def _require_columns(
    part: TablePart, found: Sequence[str], needed: Mapping[str, str], spec: TableSpec, metadata: Sequence[str]
) -> None:
    for ours, name in needed.items():
        if name not in found and found:
            raise ValueError(
                f"{part.name}: missing column '{name}', it has {sorted(found)}; "
                f"name another with data.source.columns.{spec.name}.{ours}=<column>, or null if there is none"
            )
    for name in metadata:
        if name not in found and found:
            raise ValueError(f"{part.name}: missing column '{name}', named by data.source.metadata")
    for name in {*needed.values(), *metadata}:
        if found.count(name) > 1:
            raise ValueError(f"{part.name}: {found.count(name)} columns are called '{name}'")


def _renamed(
    part: TablePart, raw: Mapping[str, Any], names: Mapping[str, str | None], others: str | None
) -> dict[str, Any]:
    for column, labels in part.labels.items():
        number = raw.get(column)
        raw = {**raw, column: labels[number] if number is not None and 0 <= number < len(labels) else None}
    if part.constants:
        raw = {**part.constants, **raw}
    row = {ours: raw.get(name) if name else None for ours, name in names.items()}
    if others is not None:
        used = {*names, *names.values()}
        row[others] = {name: value for name, value in raw.items() if name not in used}
    return row
