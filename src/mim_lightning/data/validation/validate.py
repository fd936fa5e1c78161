"""Validates a manifest: inspects every row and image and reports what it finds, without changing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING

from mim_lightning.data.manifest.manifest import Manifest
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.validation.duplicates import find_duplicates
from mim_lightning.data.validation.findings import Findings, finding_of
from mim_lightning.data.validation.image_checks import ImageTable, find_invalid_images, image_refs
from mim_lightning.data.validation.image_scan import Read, scan_images
from mim_lightning.data.validation.report import ImageStatistics, ValidationReport, find_unanswerable
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.validation.statistics import (
    catalog_statistics,
    category_balance,
    find_html_texts,
    find_in_rows,
    split_statistics,
    text_lengths,
)

if TYPE_CHECKING:  # imports torch, which the processes that inspect images do without
    from mim_lightning.types import InputSpec


def validate_manifest(
    manifest: Manifest,
    issues: Sequence[RowIssue],
    settings: ValidationSettings,
    read: Read,
    *,
    scan_path: Path | None = None,
    train_split: str = "train",
    specs: Mapping[str, InputSpec] | None = None,
) -> ValidationReport:
    """Inspect every row and image, and report errors and warnings.

    Args:
        manifest: with the splits that will be written, so after a protocol was applied.
        issues: that the source reported of rows and images it dropped from the manifest.
        settings: what is an error.
        read: returns the stored bytes of an image; must be picklable.
        scan_path: see `scan_images`.
        train_split: the split whose row is reported for an image in two splits.
        specs: of the towers' inputs by name, for the limits of their tokenizers; without, words are counted.

    Raises:
        ValueError: a process that inspected images died. Invalid data are reported, not raised.
    """
    images = scan_images(image_refs(manifest), read, scan_path, settings.num_processes)
    texts, truncated_texts = text_lengths(manifest, specs or {}, settings)
    findings = Findings()
    kept_rows = {("products", product.origin) for product in manifest.products.values()}
    kept_rows |= {("queries", query.origin) for query in manifest.queries}
    findings.add(finding_of(issue, (issue.table, issue.origin) in kept_rows) for issue in issues)
    findings.add(find_invalid_images(manifest, images, settings))
    findings.add(find_in_rows(manifest, settings))
    findings.add(find_duplicates(manifest, images, settings, train_split))
    findings.add(find_html_texts(manifest, settings))
    findings.add(truncated_texts)
    findings.add(list(find_unanswerable(manifest, findings.kept)))
    dropped_rows = {(issue.table, issue.origin) for issue in issues} - kept_rows
    num_kept = {"products": len(manifest.products), "queries": len(manifest.queries)}
    paths = {"products": manifest.products_path, "queries": manifest.queries_path}
    splits = split_statistics(manifest)
    return ValidationReport(
        settings=settings,
        paths={table: str(path) for table, path in paths.items() if path is not None},
        num_rows={table: num + sum(dropped == table for dropped, _ in dropped_rows) for table, num in num_kept.items()},
        catalog=catalog_statistics(manifest),
        splits=splits,
        images=_image_statistics(images),
        texts=texts,
        categories=category_balance(manifest),
        findings=tuple(findings.kept),
        counts=dict(findings.counts),
        missing_split=train_split if splits and all(split.name != train_split for split in splits) else "",
    )


def _image_statistics(images: ImageTable) -> ImageStatistics:
    valid = [image for image in images.values() if not image.kind]
    sides = [max(image.height, image.width) for image in valid] or [0]
    num_bytes = sum(image.num_bytes for image in valid)
    return ImageStatistics(len(valid), num_bytes, min(sides), median_low(sides), max(sides))
