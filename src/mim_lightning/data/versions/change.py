"""Versions of prepared data: rows are added, replaced and deleted in a version n + 1; version n stays as it is.

The new shards are written in the staging directory of the data and linked into their sets; at last SETTINGS_FILE is
replaced, which makes the version the newest. Before that moment nothing reads it, and the next attempt starts from what
an interrupted one finished. Only folders can be changed: a store has neither locks nor renames.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mim_lightning.data.images.download import DownloadSettings
from mim_lightning.data.images.reader import ImageReader
from mim_lightning.data.manifest.content_hash import table_id
from mim_lightning.data.manifest.id_list import read_ids
from mim_lightning.data.manifest.manifest import Manifest
from mim_lightning.data.manifest.row_store import rows_in
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.preparation.hash_layout import NAMES_PER_SHARD
from mim_lightning.data.preparation.local_engine import WritingSettings, write_sets
from mim_lightning.data.preparation.plan import BY_PRODUCT, SHUFFLED, RecordReader
from mim_lightning.data.preparation.preparation import Validation, report_dir
from mim_lightning.data.preparation.prepared import CATALOG, CONTENT, PreparedData, ShardSettings, open_prepared
from mim_lightning.data.preparation.staging import IMAGES_FILE, SETTINGS_FILE, WORK_FILE, staging_dir, staging_path
from mim_lightning.data.shards.set_index import FIRST_VERSION, VERSIONS, SetIndex
from mim_lightning.data.splits import GivenSplits, ProductDisjointSplits, Protocol
from mim_lightning.data.validation.report import drop_invalid, raise_if_invalid
from mim_lightning.data.validation.validate import validate_manifest
from mim_lightning.data.versions.addition import (
    Addition,
    find_in_other_splits,
    is_of_pairs,
    keep_splits,
    new_products,
    read_addition,
    report_alone,
    source_of,
)
from mim_lightning.data.versions.changed_rows import ChangePlanner, ProductChange, SetChange, StoredSamples
from mim_lightning.data.versions.known_rows import KnownRows
from mim_lightning.data.versions.set_versions import write_version
from mim_lightning.data.versions.stored_duplicates import find_stored_duplicates
from mim_lightning.data.versions.unchanged_rows import without_unchanged
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.paths import PathOrUrl, to_path_or_url
from mim_lightning.io.store import Store

REPORTS = "versions"  # folder of the reports of later versions, one for each
CHANGE = "change"  # in the description of unfinished work


@dataclass(frozen=True)
class Tables:
    """Tables to add, and whether rows with an id that is there replace those."""

    products: str | None = None
    queries: str | None = None
    replace: bool = False


@dataclass(frozen=True)
class Deletion:
    """Products and queries to delete: ids, or the path of a table with a column product_id or query_id."""

    products: str | Sequence[str] = ()
    queries: str | Sequence[str] = ()


@dataclass(frozen=True)
class Change:
    """What a version changes.

    Args:
        add, delete: rows.
        compact: write shards again of which more than this fraction was removed; None: none.
    """

    add: Tables = field(default_factory=Tables)
    delete: Deletion = field(default_factory=Deletion)
    compact: float | None = None

    def __bool__(self) -> bool:
        add, delete = self.add, self.delete
        return bool(add.products or add.queries or delete.products or delete.queries) or self.compact is not None


@dataclass(frozen=True)
class _Plan:
    """The changes of all sets, with what is said of them."""

    sets: list[SetChange]
    reader: ImageReader
    lines: list[str]
    report: Path | None = None  # folder in the staging directory


def change_data(
    folder: PathOrUrl,
    change: Change,
    validation: Validation,
    *,
    download: DownloadSettings | None = None,
    num_workers: int | None = None,
) -> PreparedData:
    """Write the next version of prepared data, and print what it changed.

    Args:
        folder: of the data.
        change: what the version changes.
        validation: how the tables are validated.
        download: of images at URLs.
        num_workers: processes that write; None: by the cores and the number of rows.

    Raises:
        ValueError: nothing is prepared there, it is no folder, a table or image is invalid, no product would be left,
            or another process is changing the data, or made another change since this one began.
    """
    if not isinstance(folder, Path):
        raise ValueError(
            f"data.folder={folder}: only a local folder can be changed; change a local copy and upload what is new, "
            f"{SETTINGS_FILE} last"
        )
    parent = open_prepared(folder)
    described = {CHANGE: {**_describe(change), "parent": parent.version}}
    if is_repeated := _is_newest(parent, described[CHANGE]):
        print(f"{folder}: has this change already, as version {parent.version}")
    with staging_dir(folder, described, overwrite=_is_of_change(staging_path(folder))) as staging:
        newest = open_prepared(folder)
        if is_repeated:
            return newest
        if newest.version != parent.version:  # by a process that was faster
            if newest.describe()[VERSIONS][-1][CHANGE] == described[CHANGE]:
                return newest
            raise ValueError(
                f"{folder}: another process made version {newest.version} of it meanwhile, by another change; nothing "
                "was changed, run the command again"
            )
        _validate_whole(parent)
        settings = _shard_settings(parent.describe())
        rows = KnownRows(parent, settings.train_split)
        number = parent.version + 1
        with rows_in(staging, validation.settings.memory_bytes):
            plan = _plan(change, rows, settings, validation, staging, number, download)
        if not plan.sets:
            print("\n".join([*plan.lines, f"{folder}: nothing to change, version {parent.version} stays"]))
            (staging / IMAGES_FILE).unlink(missing_ok=True)
            return parent
        writing = WritingSettings(settings.samples_per_shard, settings.max_image_side, num_workers)
        _write(plan, parent, staging, writing, number, described[CHANGE])
        print("\n".join(plan.lines))
        shutil.rmtree(staging, ignore_errors=True)
    return open_prepared(folder)


def _plan(
    change: Change,
    rows: KnownRows,
    settings: ShardSettings,
    validation: Validation,
    staging: Path,
    number: int,
    download: DownloadSettings | None,
) -> _Plan:
    if change.compact is not None:
        return _plan_compaction(change.compact, rows)
    folder = rows.prepared.folder
    assert isinstance(folder, Path)
    deleted, unknown = _find_deleted(change.delete, rows)
    products = rows.product_ids(deleted.products)
    splits = rows.splits_of_queries(deleted.queries)
    addition, reader = _empty(rows), ImageReader(download)
    if change.add.products or change.add.queries:
        gone = Deletion(sorted(products), sorted(splits))
        addition = _validated_addition(change.add, gone, rows, settings, validation, staging, number, reader)
    new = new_products(addition)
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
    for part in sets:
        before = _num_samples(rows.prepared, part.name)
        after = before - len(part.removed) + len(part.samples)
        if part.name == CATALOG and not after:
            raise ValueError(
                f"{folder}: this change would leave no product; delete fewer, or prepare other data instead"
            )
        lines.append(
            f"  {_title(part.name)}: {after:,} rows ({len(part.removed):,} removed, {len(part.samples):,} new)"
        )
    return _Plan(sets, reader, lines, staging / REPORTS if change.add.products or change.add.queries else None)


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
    reader.fetch_all(addition.manifest.stored().image_refs())
    report = validate_manifest(
        addition.manifest,
        issues,
        validation.settings,
        reader.read,
        scan_path=staging / IMAGES_FILE,
        train_split=settings.train_split,
        specs=validation.specs,
    )
    report = report_alone(report, addition, rows)
    replaced, gone_products = {*addition.replaced_queries, *deleted.queries}, {*addition.replaced_products, *gone}
    found = [
        *find_in_other_splits(addition, rows, validation.settings, replaced),
        *find_stored_duplicates(
            addition, rows, reader, validation.settings, settings.max_image_side, replaced, gone_products
        ),
    ]
    if found:
        counts = Counter(report.counts) + Counter(finding.kind for finding in found)
        report = replace(report, findings=(*report.findings, *found), counts=counts)
    try:
        raise_if_invalid(report)
    except ValueError as error:
        validation.write_report(report, report_dir(folder), reader)
        where = f"; the report is in {report_dir(folder)}" if report_dir(folder).is_dir() else ""
        raise ValueError(f"{error}{where}") from None
    validation.write_report(report, staging / REPORTS, reader)
    valid = drop_invalid(addition.manifest, report).in_memory()
    return replace(
        addition,
        manifest=valid,
        replaced_products=addition.replaced_products & valid.products.keys(),
        replaced_queries={
            query.query_id: addition.replaced_queries[query.query_id]
            for query in valid.queries
            if query.query_id in addition.replaced_queries
        },
    )


def _write(
    plan: _Plan, parent: PreparedData, staging: Path, writing: WritingSettings, number: int, change: Mapping[str, Any]
) -> None:
    folder, indexes = parent.folder, {part.name: _former_index(parent, part.name) for part in plan.sets}
    assert isinstance(folder, Path)
    added = [part for part in plan.sets if part.samples]
    # names of samples differ between shards, also where each engine of the former versions numbered them its own way
    planned = [part.plan(NAMES_PER_SHARD * _num_files(indexes[part.name])) for part in added]
    write_sets(planned, Store(staging), plan.reader, writing)
    content = {**parent.content()}
    settings = parent.describe()
    entries = settings.get(VERSIONS) or [
        {"version": FIRST_VERSION, "sets": dict.fromkeys(content, FIRST_VERSION), CONTENT: {**content}}
    ]
    versions, counts = {**entries[-1]["sets"]}, {}
    for part in plan.sets:
        index = indexes[part.name]
        removed = part.removed if index is None else index.rows_of(part.removed)
        staged = staging / part.name if part.samples else None
        content[part.name] = write_version(folder, part.name, index, staged, removed, number)
        versions[part.name] = number
        num_left = _num_samples(parent, part.name) - len(part.removed) + len(part.samples)
        counts[part.name] = {"removed": len(part.removed), "added": len(part.samples), "samples": num_left}
        if not num_left:
            del content[part.name], versions[part.name]
    if plan.report is not None and plan.report.is_dir():
        target = folder / REPORTS / f"{number:06d}"
        shutil.copytree(plan.report, target, dirs_exist_ok=True)
    entry = {
        "version": number,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        CHANGE: dict(change),
        "rows": counts,
        "sets": versions,
        CONTENT: content,
    }
    with atomic_write(folder / SETTINGS_FILE) as partial:
        partial.write_text(json.dumps({**settings, VERSIONS: [*entries, entry]}, indent=2))


def _plan_compaction(fraction: float, rows: KnownRows) -> _Plan:
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
    return _Plan(sets, ImageReader(), [*head, *lines])


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


def _former_index(prepared: PreparedData, name: str) -> SetIndex | None:
    """Return the index of a set; None: no version has it. Of one that a change emptied, the last, all rows removed."""
    if name in prepared.content():
        return prepared.open_set(name).index
    for entry in reversed(prepared.describe().get(VERSIONS, ())):
        if name in entry["sets"]:
            index = PreparedData(prepared.folder, None, int(entry["version"])).open_set(name).index
            return replace(index, removed=np.arange(index.num_rows))
    return None


def _num_files(index: SetIndex | None) -> int:
    return 0 if index is None else len(index.stored_sizes)


def _num_samples(prepared: PreparedData, name: str) -> int:
    return len(prepared.open_set(name)) if name in prepared.content() else 0


def _title(set_name: str) -> str:
    return "catalog" if set_name == CATALOG else set_name.removeprefix("queries/")


def _describe(change: Change) -> dict[str, Any]:
    """Return what tells a change from others."""
    tables = {"products": change.add.products, "queries": change.add.queries}
    found: dict[str, Any] = {f"add.{name}": table_id(to_path_or_url(path)) for name, path in tables.items() if path}
    if change.add.replace:
        found["add.replace"] = True
    for name, ids in (("products", change.delete.products), ("queries", change.delete.queries)):
        if ids:
            found[f"delete.{name}"] = _hash_ids(read_ids(ids, "product_id" if name == "products" else "query_id"))
    if change.compact is not None:
        found["compact"] = change.compact
    return found


def _hash_ids(ids: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(sorted(ids)).encode(), digest_size=8).hexdigest()


def _is_newest(prepared: PreparedData, change: Mapping[str, Any]) -> bool:
    """Return whether the newest version made this change, of the same tables, by adding or deleting."""
    entries = prepared.describe().get(VERSIONS)
    if not entries or change.get("add.replace") or "compact" in change:
        return False
    there = {key: value for key, value in entries[-1].get(CHANGE, {}).items() if key != "parent"}
    return there == {key: value for key, value in change.items() if key != "parent"}


def _is_of_change(staging: Path) -> bool:
    """Return whether a staging directory has what is left of a change: another one may discard it."""
    try:
        return CHANGE in json.loads((staging / WORK_FILE).read_text())["described"]
    except (OSError, ValueError, KeyError):
        return False


def _validate_whole(prepared: PreparedData) -> None:
    damages = prepared.find_damage(is_thorough=False)
    if damages:
        raise ValueError(f"{prepared.folder}: missing or damaged: {', '.join(map(str, damages))}; mend it first")


def _shard_settings(described: Mapping[str, Any]) -> ShardSettings:
    settings = dict(described["settings"])
    layout = BY_PRODUCT if settings.pop("layout", None) else SHUFFLED
    return ShardSettings(**settings, layout=layout)


def _protocol(described: Mapping[str, Any]) -> Protocol:
    stored = described.get("protocol", {})
    return ProductDisjointSplits(**stored) if "num_folds" in stored else GivenSplits(**stored)
