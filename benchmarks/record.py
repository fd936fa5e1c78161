"""The record of a benchmark: its options, its JSON file, and its tables in Markdown."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def add_output(parser: argparse.ArgumentParser, what: str = "file for the same as JSON", tables: bool = False) -> None:
    """Add `--output`, and `--tables` if tables can be written from a record without measuring anew."""
    parser.add_argument("--output", type=Path, help=what)
    if tables:
        parser.add_argument("--tables", type=Path, help="measure nothing, write the tables of this JSON file beside it")


def read_record(path: Path | None) -> dict[str, Any]:
    """Return what a file holds so far: nothing if there is none."""
    return json.loads(path.read_text()) if path and path.is_file() else {}


def write_record(path: Path | None, record: Any) -> None:
    """Write a record, if a file was named."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *notes: str, num_left: int = 1) -> list[str]:
    """Return the lines of a table, and of a note below it.

    Args:
        num_left: columns of words, which come first; numbers are aligned to the right.
    """
    marks = ["---"] * num_left + ["---:"] * (len(headings) - num_left)
    lines = [f"| {' | '.join(map(str, row))} |" for row in (headings, marks, *rows)]
    return [*lines, *(line for note in notes for line in ("", f"*{note}.*"))]


def write_tables(folder: Path, **tables: Sequence[str]) -> None:
    """Print tables, and write each to the file of its name."""
    for name, lines in tables.items():
        text = "\n".join(lines) + "\n"
        print(text)
        (folder / f"{name}.md").write_text(text)
