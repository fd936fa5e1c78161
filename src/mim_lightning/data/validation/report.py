"""The report of a validation: statistics and findings, whether there are too many errors, and the rows without them."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mim_lightning.data.manifest.manifest import Manifest
from mim_lightning.data.validation.findings import Finding
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.validation.statistics import CatalogStatistics, CategoryBalance, SplitStatistics, TextLengths
from mim_lightning.display.numbers import format_count, format_percent
from mim_lightning.display.text import csv_cell
from mim_lightning.io.atomic import atomic_write

FINDINGS_FILE = "findings.csv"  # beside the prepared data


@dataclass(frozen=True)
class ImageStatistics:
    """The distinct images of a manifest that decode; sides in pixels of the longer one."""

    num_images: int
    num_bytes: int
    shortest_side: int
    median_side: int
    longest_side: int


@dataclass(frozen=True)
class ValidationReport:
    """What a validation found.

    Attributes:
        paths: of the tables, by name ("products", "queries").
        num_rows: of each table, invalid ones included.
        findings: all errors, and the first 100,000 warnings of each kind.
        counts: of all findings, by kind.
        missing_split: the training split, if there are queries but none of it.
    """

    settings: ValidationSettings
    paths: Mapping[str, str]
    num_rows: Mapping[str, int]
    catalog: CatalogStatistics
    splits: tuple[SplitStatistics, ...]
    images: ImageStatistics
    texts: tuple[TextLengths, ...]
    categories: CategoryBalance
    findings: tuple[Finding, ...]
    counts: Mapping[str, int]
    missing_split: str = ""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings for which a row is dropped, or a single image of a row that stays."""
        return tuple(finding for finding in self.findings if finding.is_error)

    def num_invalid_rows(self, table: str) -> int:
        """Return how many rows of a table are invalid; one with several errors counts once."""
        return len({f.place for f in self.findings if f.drops == "row" and f.table == table})

    def row_of(self, finding: Finding) -> str:
        """Return a row's number in its table; of a table in several files the file too."""
        within = finding.origin.removeprefix(self.paths.get(finding.table, "")).lstrip("/")
        return within.removeprefix(", row ")

    def place_of(self, finding: Finding) -> str:
        """Return where a finding is, as "products, row 7 (its id), column 'image'"."""
        row = self.row_of(finding)
        row_id = f" ({finding.row_id})" if finding.row_id else ""
        column = f", column '{finding.column}'" if finding.column else ""
        return f"{finding.table}, {f'row {row}' if row.isdigit() else row}{row_id}{column}"

    def of_kind(self, kind: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.kind == kind)


# --- too many errors, or dropped rows -------------------------------------------------------------------


def raise_if_invalid(report: ValidationReport) -> None:
    """Raise a ValueError if there are errors with on_invalid=raise, or more than max_invalid with on_invalid=drop."""
    rejection = describe_rejection(report)
    if rejection:
        raise ValueError(rejection)


def describe_rejection(report: ValidationReport) -> str:
    """Return in one line why the data are rejected, "" if they are not."""
    settings, errors = report.settings, report.errors
    if not errors:
        return ""
    limit = f"data.validation.max_invalid={settings.max_invalid}"
    if settings.on_invalid == "raise":
        rows = [
            f"{format_count(count, 'row')} of {table}"
            for table in report.num_rows
            if (count := report.num_invalid_rows(table))
        ]
        return (
            f"the validation found {format_count(len(errors), 'error')} in "
            f"{', '.join(rows) or 'single images of products'}, the first is {errors[0]}; mend "
            f"{'it' if len(errors) == 1 else 'them'}, or drop invalid rows with data.validation.on_invalid=drop "
            f"(at most {limit} of a table)"
        )
    for table, num_rows in report.num_rows.items():
        num_invalid, ceiling = report.num_invalid_rows(table), settings.ceiling(num_rows)
        if num_invalid > ceiling:
            first = next(finding for finding in errors if finding.table == table and finding.drops == "row")
            return (
                f"{num_invalid:,} of {num_rows:,} rows of the {table} table are invalid "
                f"({format_percent(num_invalid, num_rows)}), which exceeds {limit} ({format_count(ceiling, 'row')}); "
                f"the first is {first}; mend them, or raise data.validation.max_invalid"
            )
    return ""


def drop_invalid(manifest: Manifest, report: ValidationReport) -> Manifest:
    """Return the manifest without invalid rows and images; queries keep their other products."""
    rows = {finding.place for finding in report.errors if finding.drops == "row"}
    images = {(finding.origin, finding.image) for finding in report.errors if finding.drops == "image"}
    products = {}
    for product_id, product in manifest.products.items():
        if ("products", product.origin) not in rows:
            valid = tuple(image for image in product.images if (product.origin, image) not in images)
            products[product_id] = product if len(valid) == len(product.images) else replace(product, images=valid)
    queries = []
    for query in manifest.queries:
        if ("queries", query.origin) not in rows:
            if not products.keys() >= {*query.target_ids, *query.reference_ids}:
                targets = [
                    pair for pair in zip(query.target_ids, query.target_grades, strict=True) if pair[0] in products
                ]
                query = replace(
                    query,
                    target_ids=tuple(product_id for product_id, _ in targets),
                    target_grades=tuple(grade for _, grade in targets),
                    reference_ids=tuple(product_id for product_id in query.reference_ids if product_id in products),
                )
            queries.append(query)
    return replace(manifest, products=products, queries=queries)


def find_unanswerable(manifest: Manifest, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the queries all of whose products are dropped for `findings`, with the reason of the first."""
    row_errors = [finding for finding in findings if finding.drops == "row"]
    causes = {finding.place: finding for finding in reversed(row_errors)}
    dropped = {key for key, product in manifest.products.items() if ("products", product.origin) in causes}
    for query in manifest.queries:
        wanted = query.target_ids or query.reference_ids
        if wanted and dropped.issuperset(wanted) and ("queries", query.origin) not in causes:
            cause = causes["products", manifest.products[wanted[0]].origin]
            what = f"its product '{wanted[0]}' is" if len(wanted) == 1 else f"all its {len(wanted)} products are"
            reason = f"{what} invalid: {cause}"
            yield Finding("answer_left_out", "queries", query.origin, query.query_id, "product_id", reason, "row")


# --- files ----------------------------------------------------------------------------------------------


def write_skipped(report: ValidationReport, path: Path) -> None:
    """Write a CSV file of what is dropped: table, row, id, column, reason."""
    _write_csv(path, ("table", "row", "id", "column", "reason"), (_cells(report, finding) for finding in report.errors))


def write_findings(report: ValidationReport, path: Path) -> None:
    """Write a CSV file of all findings, warnings too."""
    rows = ((f.kind, "error" if f.is_error else "warning", *_cells(report, f)) for f in report.findings)
    _write_csv(path, ("kind", "severity", "table", "row", "id", "column", "reason"), rows)


def found_ids(path: Path, kinds: Collection[str]) -> set[str]:
    """Return the ids of the rows with findings of some kinds, from a file of `write_findings`."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"] for row in csv.DictReader(file) if row["kind"] in kinds}


def _cells(report: ValidationReport, finding: Finding) -> tuple[str, ...]:
    only = "only this image is dropped: " if finding.drops == "image" else ""
    return finding.table, report.row_of(finding), finding.row_id, finding.column, only + finding.reason


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([csv_cell(cell) for cell in row] for row in rows)
