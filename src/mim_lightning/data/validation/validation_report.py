"""The report of a validation: statistics and findings, whether there are too many errors, and the rows without them."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mim_lightning.data.manifest.click_report import ClickReport
from mim_lightning.data.manifest.manifest import Manifest
from mim_lightning.data.manifest.row_store import RowChanges
from mim_lightning.data.manifest.stored_rows import (
    PRODUCTS,
    QUERIES,
    StoredRows,
    image_key,
    named_products,
    pack_product,
    pack_query,
    unpack_product,
    unpack_query,
)
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
        paths: of the tables, by name ("products", "queries", "impressions").
        num_rows: of each table, invalid ones included.
        findings: all errors, and the first 100,000 warnings of each kind.
        counts: of all findings, by kind.
        missing_split: the training split, if there are queries but none of it.
        clicks: of the log that answers were made from, if they were.
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
    clicks: ClickReport | None = None

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
    invalid = {table: count for table in report.num_rows if (count := report.num_invalid_rows(table))}
    too_many = [table for table, count in invalid.items() if count > settings.ceiling(report.num_rows[table])]
    key = "data.validation.max_invalid"
    limit, most = f"{key}={settings.max_invalid}", max(invalid.values(), default=0)
    if settings.on_invalid == "raise":
        rows = [f"{format_count(count, 'row')} of {table}" for table, count in invalid.items()]
        return (
            f"the validation found {format_count(len(errors), 'error')} in "
            f"{', '.join(rows) or 'single images of products'}, the first is {errors[0]}; mend "
            f"{'it' if len(errors) == 1 else 'them'}, or drop invalid rows with data.validation.on_invalid=drop "
            + (f"{key}={most} (rows of a table)" if too_many else f"(at most {limit} of a table)")
        )
    if too_many:
        table = too_many[0]
        num_rows = report.num_rows[table]
        first = next(finding for finding in errors if finding.table == table and finding.drops == "row")
        return (
            f"{invalid[table]:,} of {num_rows:,} rows of the {table} table are invalid "
            f"({format_percent(invalid[table], num_rows)}), which exceeds {limit} "
            f"({format_count(settings.ceiling(num_rows), 'row')}); the first is {first}; "
            f"mend them, or give {key}={most}"
        )
    return ""


def drop_invalid(manifest: Manifest, report: ValidationReport) -> Manifest:
    """Return the manifest without invalid rows and images; queries keep their other products."""
    if not report.errors:
        return manifest
    rows = manifest.stored()
    store = rows.store
    dropped = store.create("errors", "place VARCHAR, origin VARCHAR, key VARCHAR")
    found = (
        (f.table if f.drops == "row" else "image", f.origin, None if f.image is None else image_key(f.image))
        for f in report.errors
    )
    store.write(dropped, found)
    products = _without(rows, rows.products, "products", dropped)
    queries = _without(rows, rows.queries, "queries", dropped)
    missing = store.select("missing", f"FROM ({named_products(queries)}) ANTI JOIN {products} USING (product_id)")
    changes = RowChanges(store, QUERIES)
    for row, found_ids in store.read_with(queries, missing):
        query, ids = unpack_query(row), {product_id for (product_id,) in found_ids}
        kept = [pair for pair in zip(query.target_ids, query.target_grades, strict=True) if pair[0] not in ids]
        query = replace(
            query,
            target_ids=tuple(product_id for product_id, _ in kept),
            target_grades=tuple(grade for _, grade in kept),
            reference_ids=tuple(product_id for product_id in query.reference_ids if product_id not in ids),
        )
        changes.change(pack_query(row[0], query))
    answerable = changes.apply(queries)
    for table in {dropped, missing} | {queries} - {answerable, rows.queries}:
        store.drop(table)
    return manifest.with_rows(StoredRows(store, products, answerable))


def _without(rows: StoredRows, table: str, name: str, dropped: str) -> str:
    """Return a table of products or queries without the rows and images in `dropped`."""
    store, changes = rows.store, RowChanges(rows.store, PRODUCTS if name == "products" else QUERIES)
    lost = f"SELECT origin FROM {dropped} WHERE place = '{name}'"
    for (position,) in store.read(f"SELECT position FROM {table} WHERE origin IN ({lost})"):
        changes.drop(position)
    if name == "products":
        keys = (
            f"SELECT origin, list(key) AS keys FROM {dropped} WHERE place = 'image' AND key IS NOT NULL GROUP BY origin"
        )
        images = f"SELECT p.*, keys FROM {table} p JOIN ({keys}) USING (origin) WHERE origin NOT IN ({lost})"
        for *row, keys in store.read(images):
            product = unpack_product(row)
            valid = tuple(image for image in product.images if image_key(image) not in keys)
            changes.change(pack_product(row[0], replace(product, images=valid)))
    return changes.apply(table)


def find_unanswerable(rows: StoredRows, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the queries all of whose products are dropped for `findings`, with the reason of the first."""
    causes = {finding.place: finding for finding in reversed([f for f in findings if f.drops == "row"])}
    if not causes:
        return
    store = rows.store
    errors = store.create("errors", "place VARCHAR, origin VARCHAR")
    store.write(errors, causes)
    lost = f"SELECT origin FROM {errors} WHERE place = 'products'"
    dropped = store.select("lost", f"SELECT product_id, origin FROM {rows.products} WHERE origin IN ({lost})")
    wanted = "CASE WHEN len(targets) > 0 THEN targets ELSE ifnull(reference_ids, targets) END"
    for origin, query_id, first, num_wanted, product_origin in store.read(
        f"""WITH wanted AS (SELECT position, origin, query_id, {wanted} AS ids FROM {rows.queries}),
        counts AS (
            SELECT position, count(*) AS num_dropped FROM (SELECT position, unnest(ids) AS product_id FROM wanted)
            SEMI JOIN {dropped} USING (product_id) GROUP BY position
        )
        SELECT w.origin, query_id, ids[1], len(ids), d.origin FROM wanted w JOIN counts USING (position)
        JOIN {dropped} d ON d.product_id = ids[1]
        WHERE num_dropped = len(ids) AND w.origin NOT IN (SELECT origin FROM {errors} WHERE place = 'queries')
        ORDER BY position"""
    ):
        what = f"its product '{first}' is" if num_wanted == 1 else f"all its {num_wanted} products are"
        reason = f"{what} invalid: {causes['products', product_origin]}"
        yield Finding("answer_left_out", "queries", origin, query_id, "product_id", reason, "row")


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
