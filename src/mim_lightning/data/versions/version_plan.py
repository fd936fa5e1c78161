"""The plan of a version: the changes of all sets, of validated rows, before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mim_lightning.data.images.download import DownloadSettings
from mim_lightning.data.images.reader import ImageReader
from mim_lightning.data.manifest.id_list import read_ids
from mim_lightning.data.manifest.manifest import Manifest
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.manifest.stored_rows import StoredRows
from mim_lightning.data.preparation.plan import RecordReader
from mim_lightning.data.preparation.preparation import Validation, report_dir
from mim_lightning.data.preparation.prepared import CATALOG, COMPOSE, PreparedData, ShardSettings
from mim_lightning.data.preparation.staging import IMAGES_FILE
from mim_lightning.data.splits import GivenSplits, ProductDisjointSplits, Protocol
from mim_lightning.data.validation.findings import IN_CATALOG, Finding
from mim_lightning.data.validation.image_hashes import ADDED, hashes_path, write_hashes
from mim_lightning.data.validation.image_scan import scan_images
from mim_lightning.data.validation.validate import validate_manifest
from mim_lightning.data.validation.validation_report import (
    ValidationReport,
    drop_invalid,
    find_unanswerable,
    raise_if_invalid,
)
from mim_lightning.data.versions.addition import (
    Addition,
    find_in_other_splits,
    is_of_pairs,
    keep_splits,
    read_addition,
    report_alone,
    source_of,
)
from mim_lightning.data.versions.change import Change, Deletion, Tables
from mim_lightning.data.versions.changed_rows import ChangePlanner, NewProducts, ProductChange, SetChange, StoredSamples
from mim_lightning.data.versions.known_rows import KnownRows
from mim_lightning.data.versions.stored_duplicates import NewImages, find_stored_duplicates, stored_images
from mim_lightning.data.versions.unchanged_rows import without_unchanged

REPORTS = "versions"  # folder of the reports of later versions, one for each


@dataclass(frozen=True)
class VersionPlan:
    """The changes of all sets, with what is said of them."""

    sets: list[SetChange]
    reader: ImageReader
    lines: list[str]
    report: Path | None = None  # folder in the staging directory


def plan_version(
    change: Change,
    rows: KnownRows,
    settings: ShardSettings,
    validation: Validation,
    staging: Path,
    number: int,
    download: DownloadSettings | None,
) -> VersionPlan:
    if change.compact is not None:
        return plan_compaction(change.compact, rows)
    folder = rows.prepared.folder
    assert isinstance(folder, Path)
    deleted, unknown = _find_deleted(change.delete, rows)
    products = rows.product_ids(deleted.products)
    splits = rows.splits_of_queries(deleted.queries)
    addition, reader = _empty(rows), ImageReader(download)
    if change.add.products or change.add.queries:
        gone = Deletion(sorted(products), sorted(splits))
        addition = _validated_addition(change.add, gone, rows, settings, validation, staging, number, reader)
    new = NewProducts(addition.new_rows(), addition.replaced_products)
    planner = ChangePlanner(
        rows,
        addition.manifest,
        ProductChange(new, addition.replaced_products, products - new.keys()),
        {*splits, *addition.replaced_queries},
        settings,
    )
    planned = planner.plan()
    records = RecordReader(reader, settings.max_image_side)
    sets = [without_unchanged(part, rows, records) for part in planned]
    num_unchanged = sum(len(part.samples) for part in planned) - sum(len(part.samples) for part in sets)
    sets = [part for part in sets if len(part.removed) or part.samples]
    num_queries = len(addition.manifest.queries)
    counts = {
        "added": (len(new) - len(addition.replaced_products), num_queries - len(addition.replaced_queries)),
        "replaced": (len(addition.replaced_products), len(addition.replaced_queries)),
        "deleted": (len(products - new.keys()), len(splits.keys() - addition.replaced_queries.keys())),
    }
    lines = [f"{folder}, version {number}:"]
    lines += [f"  {verb} {num[0]:,} products and {num[1]:,} queries" for verb, num in counts.items() if any(num)]
    lines += [f"  {len(ids):,} {what} to delete are not there, the first is '{ids[0]}'" for what, ids in unknown if ids]
    if num_unchanged:
        lines.append(f"  {num_unchanged:,} rows are as they were, and stay")
    if num_queries + len(new) and COMPOSE in rows.prepared.describe()["settings"]:
        lines.append("  data.compose: made rows of the first version alone; none are composed of added products")
    for part in sets:
        before = num_samples(rows.prepared, part.name)
        after = before - len(part.removed) + len(part.samples)
        if part.name == CATALOG and not after:
            raise ValueError(
                f"{folder}: this change would leave no product; delete fewer, or prepare other data instead"
            )
        lines.append(
            f"  {_title(part.name)}: {after:,} rows ({len(part.removed):,} removed, {len(part.samples):,} new)"
        )
    return VersionPlan(sets, reader, lines, staging / REPORTS if change.add.products or change.add.queries else None)


def _validated_addition(
    tables: Tables,
    deleted: Deletion,
    rows: KnownRows,
    settings: ShardSettings,
    validation: Validation,
    staging: Path,
    number: int,
    reader: ImageReader,
) -> Addition:
    described, folder = rows.prepared.describe(), rows.prepared.folder
    assert isinstance(folder, Path)
    source = replace_download(source_of(described["source"], tables.products, tables.queries), reader)
    issues: list[RowIssue] = []
    pairs = is_of_pairs(described["source"])
    gone = set(deleted.products)
    addition = read_addition(
        source, rows, issues.append, pairs=pairs, replaces=tables.replace, version=number, deleted=gone
    )
    addition = keep_splits(addition, rows, _protocol(described), settings)
    manifest, new, scan_path = addition.manifest, addition.manifest.stored(), staging / IMAGES_FILE
    store = new.store
    reader.fetch_all(new.image_refs())
    processes = validation.settings.num_processes
    images = scan_images(new.image_refs(), reader.read, scan_path, processes, store)
    report = validate_manifest(
        manifest,
        issues,
        validation.settings,
        reader.read,
        images=images,
        train_split=settings.train_split,
        specs=validation.specs,
    )
    report = report_alone(report, addition, rows)
    in_catalog = {finding.row_id for finding in report.findings if finding.kind in IN_CATALOG}
    stored = stored_images(rows, validation.settings, store, scan_path)
    alone, kept = report, _without_dropped(addition, manifest, report)
    while True:
        replaced = {*kept.replaced_queries, *deleted.queries}
        replaced_products = {*kept.replaced_products, *gone}
        new_images = NewImages(new, images.table, addition.known, replaced, replaced_products, in_catalog)
        found = [
            *find_in_other_splits(addition, rows, validation.settings, replaced),
            *find_stored_duplicates(new_images, rows, stored, validation.settings),
        ]
        report = _with_findings(alone, found, new)
        compared, kept = kept, _without_dropped(kept, manifest, report)
        # a row whose replacement was dropped just now stays, and other rows may equal it
        if (kept.replaced_queries, kept.replaced_products) == (compared.replaced_queries, compared.replaced_products):
            break
    try:
        raise_if_invalid(report)
    except ValueError as error:
        validation.write_report(report, report_dir(folder), reader)
        where = f"; the report is in {report_dir(folder)}" if report_dir(folder).is_dir() else ""
        raise ValueError(f"{error}{where}") from None
    validation.write_report(report, staging / REPORTS, reader)
    dropped = drop_invalid(manifest, report)
    write_hashes(hashes_path(staging, number, ADDED), store, new_images.query_of_new(dropped.stored()))
    return replace(kept, manifest=dropped)


def _without_dropped(addition: Addition, manifest: Manifest, report: ValidationReport) -> Addition:
    """Return the addition without the replacements that a report drops: the former rows stay."""
    if not addition.replaced_products and not addition.replaced_queries:
        return addition
    valid, there = drop_invalid(manifest, report).stored(), addition.replaced_queries
    queries = valid.store.read(f"SELECT query_id FROM {valid.queries}")
    return replace(
        addition,
        replaced_products=addition.replaced_products & valid.product_ids(),
        replaced_queries={query_id: there[query_id] for (query_id,) in queries if query_id in there},
    )


def _with_findings(report: ValidationReport, found: list[Finding], new: StoredRows) -> ValidationReport:
    """Return a report with further findings, and the queries that lose all products by them."""
    if not found:
        return report
    lost = {finding.place for finding in report.findings if finding.kind == "answer_left_out"}
    more = find_unanswerable(new, [*report.findings, *found])
    found = [*found, *(finding for finding in more if finding.place not in lost)]
    counts = Counter(report.counts) + Counter(finding.kind for finding in found)
    return replace(report, findings=(*report.findings, *found), counts=counts)


def plan_compaction(fraction: float, rows: KnownRows) -> VersionPlan:
    if not 0 < fraction < 1:
        raise ValueError(f"compact={fraction}: give a fraction of removed rows, above 0 and below 1")
    sets, lines = [], []
    for name in rows.prepared.content():
        shards = rows.prepared.open_set(name)
        index = shards.index
        numbers: list[np.ndarray] = []
        for idx, size in enumerate(index.sizes):
            if index.shard(idx).size - size > fraction * index.shard(idx).size:
                numbers.append(np.arange(*shards.span(idx), dtype=np.int64))
        if numbers:
            removed = np.concatenate(numbers)
            sets.append(SetChange(name, removed, StoredSamples(shards, removed)))
            lines.append(f"  {_title(name)}: {len(removed):,} rows of shards with removed rows are written again")
    head = [f"{rows.prepared.folder}, version {rows.prepared.version + 1}:"] if lines else []
    return VersionPlan(sets, ImageReader(), [*head, *lines])


def _find_deleted(wanted: Deletion, rows: KnownRows) -> tuple[Deletion, list[tuple[str, list[str]]]]:
    products, queries = read_ids(wanted.products, "product_id"), read_ids(wanted.queries, "query_id")
    there, splits = rows.product_ids(products), rows.splits_of_queries(queries)
    unknown = [
        ("products", [one for one in products if one not in there]),
        ("queries", [one for one in queries if one not in splits]),
    ]
    return Deletion(products, queries), unknown


def replace_download(source: Any, reader: ImageReader) -> Any:
    source.download = reader.downloads.settings
    return source


def _empty(rows: KnownRows) -> Addition:
    return Addition(Manifest({}, [], str(rows.prepared.folder), None), frozenset(), frozenset(), {})


def num_samples(prepared: PreparedData, name: str) -> int:
    return len(prepared.open_set(name)) if name in prepared.content() else 0


def _title(set_name: str) -> str:
    return "catalog" if set_name == CATALOG else set_name.removeprefix("queries/")


def _protocol(described: Mapping[str, Any]) -> Protocol:
    stored = described.get("protocol", {})
    return ProductDisjointSplits(**stored) if "num_folds" in stored else GivenSplits(**stored)
