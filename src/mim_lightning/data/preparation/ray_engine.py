"""Prepares shard sets on a Ray cluster: reads the tables file by file, joins them, and writes each shard in a task.

No process has more than a part of the tables in memory. The id of a row decides its shard, so a second attempt finds
the finished shards by their markers and writes the others as the first would have.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from mim_lightning.data.manifest.content_hash import combine_ids
from mim_lightning.data.manifest.manifest import PRODUCTS, ManifestSource, Source
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.preparation.destination import Destination, describe_preparation
from mim_lightning.data.preparation.hash_layout import HashLayout, plan_layout
from mim_lightning.data.preparation.issue_log import IssueLog
from mim_lightning.data.preparation.plan import SHUFFLED
from mim_lightning.data.preparation.prepared import PreparedData, ShardSettings
from mim_lightning.data.preparation.ray_cluster import LOSS, RaySettings, is_loss, ray_cluster, read_rows
from mim_lightning.data.preparation.ray_tables import (
    CATALOG,
    FileCount,
    ShopTables,
    catalog_rows,
    count_file,
    join_rows,
    shop_tables,
)
from mim_lightning.data.preparation.ray_tasks import INCOMPLETE, NO_ISSUES, ShardJob, join_part, write_group
from mim_lightning.data.preparation.staging import SKIPPED_FILE
from mim_lightning.data.shards.set_writer import (
    ShardMarker,
    finish_set,
    finished_shards,
    place_shard,
    read_notes,
    remove_marker,
    remove_markers,
)
from mim_lightning.data.shards.shard_writer import write_shard
from mim_lightning.data.splits import GivenSplits, Protocol
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.display.progress import ProgressMeter
from mim_lightning.io.paths import PathOrUrl
from mim_lightning.io.store import Store

MAX_PARTITIONS = 2_000  # of a shuffle: every reading task makes a piece for each
MAX_FRUITLESS = 3  # attempts in succession that end by a loss of nodes, without a further shard
CONTENT_ID = "hashed"  # in markers: the description of the preparation decides what a shard contains

log = logging.getLogger(__name__)


def prepare_with_ray(
    source: Source | None,
    folder: PathOrUrl,
    settings: ShardSettings,
    ray_settings: RaySettings,
    validation: ValidationSettings | None = None,
    protocol: Protocol | None = None,
    *,
    overwrite: bool = False,
) -> PreparedData:
    """Write the shard sets of `source` into a folder that all machines can access, or to a URL; see `prepare_shards`.

    Raises:
        ValueError: another source than tables, or another protocol than GivenSplits; rows are invalid, the folder has
            other data, or a task failed.
    """
    if not isinstance(source, ManifestSource):
        raise ValueError(f"engine=ray: reads tables, not a {type(source).__name__}; give data=manifest")
    if not isinstance(protocol or GivenSplits(), GivenSplits):
        raise ValueError("engine=ray: no process sees all products, so data/splits=given is the only choice")
    if settings.layout != SHUFFLED:  # the query's id must decide its shard, or a repeated query would go unnoticed
        raise ValueError(
            f"data.shards.layout={settings.layout}: engine=ray writes {SHUFFLED} rows; give engine=processes"
        )
    tables = shop_tables(source)
    with ray_cluster(ray_settings):
        counts = _count(tables, settings.train_split)
        ids = {table: [count.identity for count in counts if count.table == table] for table in ("products", "queries")}
        source_described = source.describe_tables(*(combine_ids(found) if found else None for found in ids.values()))
        described = describe_preparation(source_described, settings, GivenSplits())
        destination = Destination(folder, described, overwrite)
        if existing := destination.open_existing():
            return _validate_complete(existing)
        issues = IssueLog(validation or ValidationSettings(), _num_rows(counts))
        issues.add(issue for count in counts for issue in count.issues)
        num_samples = _num_samples(counts, tables)
        layout = plan_layout(num_samples, settings.samples_per_shard, settings.seed)

        def write(staging: PathOrUrl) -> None:
            job = ShardJob(
                store=Store(staging),
                layout=layout,
                train_split=settings.train_split,
                max_image_side=settings.max_image_side,
                products_name=str(source.products),
                content_id=CONTENT_ID,
                download=source.download,
            )
            _write_all(tables, job, num_samples, ray_settings, issues)
            issues.write(job.store, SKIPPED_FILE)

        return destination.write(write)


def _validate_complete(prepared: PreparedData) -> PreparedData:
    """Raise a ValueError if the folder lost a part: only the other engine can write single shards again."""
    damages = prepared.find_damage(is_thorough=False) if isinstance(prepared.folder, Path) else []
    if damages:
        raise ValueError(
            f"{prepared.folder}: {damages[0]} is missing or damaged; prepare everything again with overwrite=true"
        )
    return prepared


def _count(tables: ShopTables, train_split: str) -> list[FileCount]:
    import ray.data

    files = tables.files()
    count_one = partial(_count_one, tables=tables, train_split=train_split)
    found = ray.data.from_items(files, override_num_blocks=len(files)).map(count_one)
    return _parse_counts(list(read_rows(found)))


def _parse_counts(rows: list[dict[str, Any]]) -> list[FileCount]:
    """Return the counts of all files, in order.

    Raises:
        ValueError: a file cannot be read.
    """
    counts = []
    for row in rows:
        if row["error"]:
            raise ValueError(row["error"])
        fields = json.loads(row["count"])
        counts.append(FileCount(**{**fields, "issues": tuple(map(RowIssue.from_json, fields["issues"]))}))
    return sorted(counts, key=lambda count: (count.table, count.file_idx))


def _count_one(row: dict[str, Any], tables: ShopTables, train_split: str) -> dict[str, Any]:
    try:
        count = count_file(tables, str(row["table"]), int(row["file"]), train_split)
    except (OSError, ValueError) as error:
        return {"count": "", "error": " ".join(str(error).split())}
    return {"count": json.dumps(asdict(count)), "error": ""}


def _num_rows(counts: list[FileCount]) -> dict[str, int]:
    tables = {count.table for count in counts}
    return {table: sum(count.num_rows for count in counts if count.table == table) for table in sorted(tables)}


def _num_samples(counts: list[FileCount], tables: ShopTables) -> dict[str, int]:
    """Return the samples of each set.

    Raises:
        ValueError: there are no products, or there is a table of queries without queries.
    """
    names = {name for count in counts for name in count.samples}
    if CATALOG not in names:
        raise ValueError(f"{tables.products.name}: no product is valid")
    if tables.queries is not None and names == {CATALOG}:
        raise ValueError(f"{tables.queries.name}: no query is valid")
    return {name: sum(count.samples.get(name, 0) for count in counts) for name in sorted(names)}


def _write_all(
    tables: ShopTables, job: ShardJob, num_samples: Mapping[str, int], settings: RaySettings, issues: IssueLog
) -> None:
    """Write the unfinished shards, then the index of each set."""
    finished, num_finished = _find_finished(job, issues, keeps_incomplete=False)
    num_parts = max(1, -(-sum(num_samples.values()) // settings.rows_per_part))
    with ProgressMeter(sum(num_samples.values()) - num_finished, num_finished) as progress:
        num_fruitless = 0
        while num_fruitless < MAX_FRUITLESS:
            try:
                for row in _write_shards(tables, job, finished, num_parts):
                    if row["error"]:
                        raise ValueError(row["error"])
                    issues.add(map(RowIssue.from_json, json.loads(row["issues"])))
                    progress.update(progress.num_done + row["rows"], progress.num_bytes + row["bytes"])
                break
            except Exception as error:
                if not is_loss(error):
                    raise
                num_before = len(finished)
                finished, num_done = _find_finished(job, issues, keeps_incomplete=True)
                progress.update(num_done - num_finished, progress.num_bytes)
                num_fruitless = num_fruitless + 1 if len(finished) == num_before else 0
                if num_fruitless == MAX_FRUITLESS:
                    raise
                num_all = job.layout.num_all
                log.warning("engine=ray: %s; %d of %d shards are finished", LOSS, len(finished), num_all)
    for name, num_shards in job.layout.num_shards.items():
        markers = finished_shards(job.store, name)
        for shard_idx in range(num_shards):
            if shard_idx not in markers:  # no row was hashed to it; readers expect every number
                with job.store.scratch() as scratch:
                    facts = write_shard(scratch / "shard", (), 0)
                    place_shard(job.store, name, shard_idx, scratch / "shard", facts, job.content_id)
        finish_set(job.store, name, num_shards)
    remove_markers(job.store)


def _find_finished(job: ShardJob, issues: IssueLog, keeps_incomplete: bool) -> tuple[frozenset[int], int]:
    """Return the numbers of the finished shards and their number of rows.

    Args:
        keeps_incomplete: those without their invalid rows are finished if these rows are allowed, and their issues are
            added. A new command writes them again: the rows may have been mended, a download may work now.
    """
    finished, num_rows = set(), 0
    noted: list[tuple[str, ShardMarker]] = []
    found: list[RowIssue] = []
    for name in job.layout.num_shards:
        markers = finished_shards(job.store, name)
        kept = [marker for marker in markers.values() if marker.content_id == job.content_id + INCOMPLETE]
        for notes in read_notes(job.store, name, kept):
            found += map(RowIssue.from_json, json.loads(notes or NO_ISSUES))
        noted += [(name, marker) for marker in kept]
        for shard_idx, marker in markers.items():
            if marker.content_id == job.content_id:
                finished.add(job.layout.number(name, shard_idx))
                num_rows += marker.size
            elif marker not in kept:  # the other engine wrote it
                remove_marker(job.store, name, marker)
    is_allowed = keeps_incomplete and issues.allows(found)
    for name, marker in noted:
        if is_allowed:
            finished.add(job.layout.number(name, marker.shard_idx))
            num_rows += marker.size
        else:
            remove_marker(job.store, name, marker)
    if is_allowed:
        issues.add(found)
    return frozenset(finished), num_rows


def _write_shards(
    tables: ShopTables, job: ShardJob, finished: frozenset[int], num_parts: int
) -> Iterator[dict[str, Any]]:
    """Join and write; yield a row for each shard that was written, see `write_group`."""
    import ray.data

    files, layout = tables.files(), job.layout
    read = partial(_read_for_join, tables=tables, layout=layout, num_parts=num_parts, train_split=job.train_split)
    joined = (
        ray.data.from_items(files, override_num_blocks=len(files))
        .map_batches(read, batch_size=1)
        .groupby("part", num_partitions=min(num_parts, MAX_PARTITIONS))
        .map_groups(partial(join_part, finished=finished), batch_format="pyarrow")
    )
    products = [file for file in files if file["table"] == PRODUCTS.name]
    read_products = partial(_read_catalog, tables=tables, layout=layout, finished=finished)
    catalog = ray.data.from_items(products, override_num_blocks=len(products)).map_batches(read_products, batch_size=1)
    grouped = catalog.union(joined).groupby("shard", num_partitions=min(layout.num_all, MAX_PARTITIONS))
    yield from read_rows(grouped.map_groups(partial(write_group, job=job), batch_format="pyarrow"))


def _read_for_join(
    batch: Mapping[str, Any], tables: ShopTables, layout: HashLayout, num_parts: int, train_split: str
) -> Iterator[Any]:
    yield from join_rows(tables, str(batch["table"][0]), int(batch["file"][0]), layout, num_parts, train_split)


def _read_catalog(
    batch: Mapping[str, Any], tables: ShopTables, layout: HashLayout, finished: frozenset[int]
) -> Iterator[Any]:
    yield from catalog_rows(tables, int(batch["file"][0]), layout, finished)
