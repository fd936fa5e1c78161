"""The report of a check: what the tables hold, everything found, and whether that is too much.

`check_manifest` makes it; terminal and page show it, `keep_good` follows it, and the two CSV files list its findings.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mim_lightning.data.validation.findings import Finding
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.validation.statistics import CatalogueFacts, CategoryBalance, SplitFacts
from mim_lightning.data.validation.texts import TextLengths
from mim_lightning.display.numbers import format_count, format_percent
from mim_lightning.display.text import csv_cell
from mim_lightning.io.atomic import atomic_write

FINDINGS_FILE = "findings.csv"  # beside the data that were checked


@dataclass(frozen=True)
class PictureSummary:
    """The distinct pictures of a manifest that can be decoded; sides in pixels of the longer one."""

    num_pictures: int
    num_bytes: int
    shortest_side: int
    median_side: int
    longest_side: int


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        places: where the tables are, by name ("products", "queries").
        num_rows: rows of each table, those left out included.
        findings: all that are bad, and of each kind that is only told the first 100,000.
        counts: findings by kind, all of them.
        missing_split: the training split, where there are queries and none of it.
    """

    settings: ValidationSettings
    places: Mapping[str, str]
    num_rows: Mapping[str, int]
    catalogue: CatalogueFacts
    splits: tuple[SplitFacts, ...]
    pictures: PictureSummary
    texts: tuple[TextLengths, ...]
    categories: CategoryBalance
    findings: tuple[Finding, ...]
    counts: Mapping[str, int]
    missing_split: str = ""

    @property
    def skipped(self) -> tuple[Finding, ...]:
        """The bad findings: rows left out, and single pictures left out of rows that stay."""
        return tuple(finding for finding in self.findings if finding.is_bad)

    @property
    def num_bad(self) -> int:
        return sum(finding.is_bad for finding in self.findings)

    def num_bad_rows(self, table: str) -> int:
        """Return how many rows of a table cannot be used; a row with several faults is one."""
        return len({f.place for f in self.findings if f.drops == "row" and f.table == table})

    def row_of(self, finding: Finding) -> str:
        """Return a row's number in its table; of a table in several files the file too."""
        within = finding.origin.removeprefix(self.places.get(finding.table, "")).lstrip("/")
        return within.removeprefix(", row ")

    def place_of(self, finding: Finding) -> str:
        """Return where a finding is, as "products, row 7 (its id), column 'image'"."""
        row = self.row_of(finding)
        row_id = f" ({finding.row_id})" if finding.row_id else ""
        column = f", column '{finding.column}'" if finding.column else ""
        return f"{finding.table}, {f'row {row}' if row.isdigit() else row}{row_id}{column}"

    def of_kind(self, kind: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.kind == kind)


def require_good(report: CheckReport) -> None:
    """Stop if bad rows are not to be left out, or are more than may be; show the report before.

    Raises:
        ValueError: with on_invalid=raise for anything invalid, with on_invalid=drop beyond max_invalid.
    """
    verdict = describe_refusal(report)
    if verdict:
        raise ValueError(verdict)


def describe_refusal(report: CheckReport) -> str:
    """Return in one line why the data are refused, "" if they are not."""
    settings, bad = report.settings, report.skipped
    if not bad:
        return ""
    if settings.on_invalid == "raise":
        return (
            f"the check found {format_count(len(bad), 'fault')} ({_told(report)}), the first is {bad[0]}; mend "
            f"{'it' if len(bad) == 1 else 'them'}, or leave bad rows out with data.validation.on_invalid=drop "
            f"(at most data.validation.max_invalid={settings.max_invalid} of a table)"
        )
    for table, num_rows in report.num_rows.items():
        num_bad, ceiling = report.num_bad_rows(table), settings.ceiling(num_rows)
        if num_bad > ceiling:
            first = next(finding for finding in bad if finding.table == table and finding.drops == "row")
            return (
                f"{num_bad:,} of {num_rows:,} rows of the {table} table are bad "
                f"({format_percent(num_bad, num_rows)}), more "
                f"than the {ceiling:,} of data.validation.max_invalid={settings.max_invalid}; the first is {first}; "
                "mend them, or raise data.validation.max_invalid"
            )
    return ""


def _told(report: CheckReport) -> str:
    rows = [
        f"{format_count(count, 'row')} of {table}" for table in report.num_rows if (count := report.num_bad_rows(table))
    ]
    return ", ".join(rows) or "single pictures of products"


def write_skipped(report: CheckReport, path: Path) -> None:
    """List what is left out: table, row, id, column, reason; of a row that stays, a single picture."""
    _write(path, ("table", "row", "id", "column", "reason"), (_cells(report, finding) for finding in report.skipped))


def write_findings(report: CheckReport, path: Path) -> None:
    """List all findings, also those that are only told."""
    rows = ((f.kind, "bad" if f.is_bad else "told", *_cells(report, f)) for f in report.findings)
    _write(path, ("kind", "weight", "table", "row", "id", "column", "reason"), rows)


def found_ids(path: Path, kinds: Collection[str]) -> set[str]:
    """Return the ids of the rows that a file of `write_findings` tells such findings of."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"] for row in csv.DictReader(file) if row["kind"] in kinds}


def _cells(report: CheckReport, finding: Finding) -> tuple[str, ...]:
    left = "this picture alone is left out: " if finding.drops == "picture" else ""
    return finding.table, report.row_of(finding), finding.row_id, finding.column, left + finding.reason


def _write(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([csv_cell(cell) for cell in row] for row in rows)
