"""Validates a manifest: inspects every row and image and reports what it finds, without changing anything."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from mim_lightning.data.manifest.manifest import Manifest
from mim_lightning.data.manifest.row_store import RowStore
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.manifest.stored_rows import StoredRows
from mim_lightning.data.validation.duplicates import find_duplicates
from mim_lightning.data.validation.findings import Findings, finding_of
from mim_lightning.data.validation.image_checks import find_invalid_images
from mim_lightning.data.validation.image_scan import Read, StoredImages, scan_images
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.validation.statistics import (
    catalog_statistics,
    category_balance,
    find_html_texts,
    find_in_rows,
    split_statistics,
    text_lengths,
)
from mim_lightning.data.validation.validation_report import ImageStatistics, ValidationReport, find_unanswerable

if TYPE_CHECKING:  # imports torch, which the processes that inspect images do without
    from mim_lightning.types import InputSpec


def validate_manifest(
    manifest: Manifest,
    issues: Sequence[RowIssue],
    settings: ValidationSettings,
    read: Read,
    *,
    images: StoredImages | None = None,
    train_split: str = "train",
    specs: Mapping[str, InputSpec] | None = None,
) -> ValidationReport:
    """Inspect every row and image, and report errors and warnings.

    Args:
        manifest: with the splits that will be written, so after a protocol was applied.
        issues: that the source reported of rows and images it dropped from the manifest.
        settings: what is an error.
        read: returns the stored bytes of an image; must be picklable.
        images: the properties of all images, in the store of the rows, if they were inspected before.
        train_split: the split whose row is reported for an image in two splits.
        specs: of the towers' inputs by name, for the limits of their tokenizers; without, words are counted.

    Raises:
        ValueError: a process that inspected images died. Invalid data are reported, not raised.
    """
    rows = manifest.stored()
    scan = images or scan_images(rows.image_refs(), read, num_processes=settings.num_processes, store=rows.store)
    texts, truncated_texts = text_lengths(rows, specs or {}, settings)
    findings = Findings()
    kept_places = _kept_places(rows, issues)
    findings.add(finding_of(issue, (issue.table, issue.origin) in kept_places) for issue in issues)
    findings.add(find_invalid_images(rows, scan.table, settings))
    findings.add(find_in_rows(rows, settings))
    findings.add(find_duplicates(rows, scan.table, settings, train_split))
    findings.add(find_html_texts(rows, settings))
    findings.add_all(truncated_texts)
    findings.add(list(find_unanswerable(rows, findings.kept)))
    dropped_rows = {(issue.table, issue.origin) for issue in issues} - kept_places
    num_kept = {"products": len(manifest.products), "queries": len(manifest.queries)}
    paths = {"products": manifest.products_path, "queries": manifest.queries_path}
    if manifest.clicks is not None:
        num_kept["impressions"], paths["impressions"] = manifest.clicks.num_rows, manifest.clicks.path
    splits = split_statistics(rows)
    return ValidationReport(
        settings=settings,
        paths={table: str(path) for table, path in paths.items() if path is not None},
        num_rows={table: num + sum(dropped == table for dropped, _ in dropped_rows) for table, num in num_kept.items()},
        catalog=catalog_statistics(rows),
        splits=splits,
        images=_image_statistics(rows.store, scan.table),
        texts=texts,
        categories=category_balance(rows),
        findings=tuple(findings.kept),
        counts=dict(findings.counts),
        missing_split=train_split if splits and all(split.name != train_split for split in splits) else "",
        clicks=manifest.clicks,
    )


def _kept_places(rows: StoredRows, issues: Sequence[RowIssue]) -> set[tuple[str, str]]:
    """Return the table and origin of those issues whose rows are in the manifest all the same."""
    store = rows.store
    places = store.create("places", "place VARCHAR, origin VARCHAR")
    store.write(places, ((issue.table, str(issue.origin)) for issue in issues))
    kept: set[tuple[str, str]] = set()
    for name, table in (("products", rows.products), ("queries", rows.queries)):
        found = f"SELECT origin FROM {places} WHERE place = ?"
        kept |= {
            (name, origin)
            for (origin,) in store.run(f"SELECT origin FROM {table} SEMI JOIN ({found}) USING (origin)", [name])
        }
    return kept


def _image_statistics(store: RowStore, images: str) -> ImageStatistics:
    sides = store.run(
        f"""SELECT greatest(height, width) AS side, count(*), sum(num_bytes)::BIGINT FROM {images}
        WHERE kind = '' GROUP BY side ORDER BY side"""
    ) or [(0, 0, 0)]
    num_images = sum(count for _, count, _ in sides)
    ends = list(accumulate(count for _, count, _ in sides))
    median = sides[bisect_right(ends, (num_images - 1) // 2)][0] if num_images else 0
    num_bytes = sum(num for _, _, num in sides)
    return ImageStatistics(num_images, num_bytes, sides[0][0], median, sides[-1][0])
