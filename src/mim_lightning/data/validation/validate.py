"""Is this manifest fit to train on? Every row and picture looked at, everything found told, nothing changed.

A Manifest and the issues its source reported come in, a CheckReport goes out. `prepare` calls it before it writes, and
as a check alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING

from mim_lightning.data.manifest.manifest import Manifest
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.validation.duplicates import find_duplicates
from mim_lightning.data.validation.findings import Findings, finding_of
from mim_lightning.data.validation.image_loading import Facts, find_bad_pictures, refs_of
from mim_lightning.data.validation.image_scan import Read, survey
from mim_lightning.data.validation.keeping import find_unanswered
from mim_lightning.data.validation.report import CheckReport, PictureSummary
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.validation.statistics import count_catalogue, count_splits, find_in_rows, measure_balance
from mim_lightning.data.validation.texts import find_html_texts, measure_texts

if TYPE_CHECKING:  # torch would come along, into the processes that look at pictures
    from mim_lightning.types import InputSpec

TABLES = ("products", "queries")


def check_manifest(
    manifest: Manifest,
    issues: Sequence[RowIssue],
    settings: ValidationSettings,
    read: Read,
    *,
    facts_path: Path | None = None,
    train_split: str = "train",
    specs: Mapping[str, InputSpec] | None = None,
) -> CheckReport:
    """Look at every row and picture, and report what is there and what is wrong.

    Args:
        manifest: with the splits that will be written, so after a protocol was applied.
        issues: what the source reported of rows and pictures it left out of the manifest.
        settings: what counts as bad.
        read: returns the stored bytes of a picture; picklable, it goes to other processes.
        facts_path: a file that grows with the pictures looked at; given again, an interrupted check goes on.
        train_split: the split whose rows are the ones to leave out where a picture stands in two.
        specs: of the towers' inputs by name, for the limits of their tokenisers; without, words are counted.

    Raises:
        ValueError: a process that looked at pictures died. What is wrong with the data is told, not raised.
    """
    facts = survey(refs_of(manifest), read, facts_path, settings.num_processes)
    texts, cut_texts = measure_texts(manifest, specs or {}, settings)
    findings = Findings()
    kept_rows = {("products", product.origin) for product in manifest.products.values()}
    kept_rows |= {("queries", query.origin) for query in manifest.queries}
    findings.add(finding_of(issue, (issue.table, issue.origin) in kept_rows) for issue in issues)
    findings.add(find_bad_pictures(manifest, facts, settings))
    findings.add(find_in_rows(manifest, settings))
    findings.add(find_duplicates(manifest, facts, settings, train_split))
    findings.add(find_html_texts(manifest, settings))
    findings.add(cut_texts)
    findings.add(list(find_unanswered(manifest, findings.kept)))
    lost_rows = {(issue.table, issue.origin) for issue in issues} - kept_rows
    num_kept = dict(zip(TABLES, (len(manifest.products), len(manifest.queries)), strict=True))
    places = {"products": manifest.products_path, "queries": manifest.queries_path}
    splits = count_splits(manifest)
    return CheckReport(
        settings=settings,
        places={table: str(place) for table, place in places.items() if place is not None},
        num_rows={table: num + sum(lost == table for lost, _ in lost_rows) for table, num in num_kept.items()},
        catalogue=count_catalogue(manifest),
        splits=splits,
        pictures=_summarise(facts),
        texts=texts,
        categories=measure_balance(manifest),
        findings=tuple(findings.kept),
        counts=dict(findings.counts),
        missing_split=train_split if splits and all(split.name != train_split for split in splits) else "",
    )


def _summarise(facts: Facts) -> PictureSummary:
    good = [found for found in facts.values() if not found.kind]
    sides = [max(found.height, found.width) for found in good] or [0]
    num_bytes = sum(found.num_bytes for found in good)
    return PictureSummary(len(good), num_bytes, min(sides), median_low(sides), max(sides))
