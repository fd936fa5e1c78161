"""The same conversion on a cluster: Ray Data reads the tables file by file, joins, and writes a shard a task.

A ManifestSource and a folder or address come in, prepared data stand there afterwards; the `prepare` door calls it
for engine=ray. No process holds more than a part of the tables. A row's shard follows from its id, so that a second
attempt finds finished shards by their markers and writes the others alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from mim_lightning.data.manifest.content_hash import combine_ids
from mim_lightning.data.manifest.manifest import PRODUCTS, ManifestSource
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.preparation.hash_layout import HashLayout, plan_layout
from mim_lightning.data.preparation.issue_log import IssueLog
from mim_lightning.data.preparation.planned_sets import SHUFFLED
from mim_lightning.data.preparation.prepared import (
    SKIPPED_FILE,
    PreparedData,
    ShardSettings,
    describe_preparation,
    is_prepared,
    open_same,
    require_free,
    write_settings,
)
from mim_lightning.data.preparation.ray_cluster import RaySettings, running
from mim_lightning.data.preparation.ray_tables import (
    CATALOGUE,
    FileCount,
    ShopTables,
    catalogue_rows,
    count_file,
    join_rows,
    shop_tables,
)
from mim_lightning.data.preparation.ray_tasks import ShardJob, join_part, write_group
from mim_lightning.data.preparation.staging import move_into_place, partial_work, remote_work
from mim_lightning.data.shards.set_writer import (
    finish_set,
    finished_shards,
    place_shard,
    remove_marker,
    remove_markers,
)
from mim_lightning.data.shards.writer import write_shard
from mim_lightning.data.splits import GivenSplits
from mim_lightning.data.validation import ValidationSettings
from mim_lightning.display.progress import ProgressMeter
from mim_lightning.io.paths import PathOrUrl
from mim_lightning.io.store import Store

MAX_PARTITIONS = 2_000  # of a shuffle: every reading task makes a piece for each
ROWS_ID = "hashed"  # in markers: the content of a shard follows from the description


def prepare_with_ray(
    source: ManifestSource,
    folder: PathOrUrl,
    settings: ShardSettings,
    ray_settings: RaySettings,
    check: ValidationSettings | None = None,
    *,
    force: bool = False,
) -> PreparedData:
    """Write the shard sets of `source` into a folder that all machines see, or to an address; see `prepare_shards`.

    Raises:
        ValueError: rows are faulty, the place holds other data, or a task failed.
    """
    if settings.layout != SHUFFLED:  # a query's id must decide its shard, or nobody would see that it stands twice
        raise ValueError(
            f"data.shards.layout={settings.layout}: engine=ray writes {SHUFFLED} rows; take engine=processes"
        )
    tables = shop_tables(source)
    with running(ray_settings):
        counts = _count(tables, settings.train_split)
        described = describe_preparation(describe_source(source, counts), settings, GivenSplits())
        if is_prepared(folder) and not force:
            return _require_whole(open_same(folder, described))
        if isinstance(folder, Path):
            require_free(folder)
        issues = IssueLog(check or ValidationSettings(), _num_rows(counts))
        issues.add(issue for count in counts for issue in count.issues)
        num_samples = _num_samples(counts, tables)
        layout = plan_layout(num_samples, settings.samples_per_shard, settings.seed)
        with _claim(folder, described, force) as place:
            if is_prepared(folder) and not force:  # by the process that was waited for
                return open_same(folder, described)
            if not is_prepared(place):
                job = _job(Store(place), layout, settings, source)
                _write_all(tables, job, num_samples, ray_settings, issues)
                issues.write(job.store, SKIPPED_FILE)
                write_settings(place, described, folder)
            if isinstance(folder, Path):
                move_into_place(Path(place), folder, force=force)
    return PreparedData(folder)


def _require_whole(prepared: PreparedData) -> PreparedData:
    """Refuse a folder that lost a part: single shards are made again by the other engine alone."""
    damages = prepared.find_damage(is_thorough=False) if isinstance(prepared.folder, Path) else []
    if damages:
        raise ValueError(f"{prepared.folder}: {damages[0]} is missing or damaged; prepare all anew by overwrite=true")
    return prepared


def _claim(folder: PathOrUrl, described: Mapping[str, Any], force: bool) -> AbstractContextManager[PathOrUrl]:
    """Return what holds the place where the data are written until they are whole."""
    if isinstance(folder, Path):
        return partial_work(folder, described, force=force)
    return remote_work(folder, described, force=force)


def describe_source(source: ManifestSource, counts: list[FileCount]) -> dict[str, Any]:
    """Return `source.describe()` from what the tasks found out about the files, without reading them here."""
    ids = {table: [count.identity for count in counts if count.table == table] for table in ("products", "queries")}
    return source.describe_tables(*(combine_ids(found) if found else None for found in ids.values()))


def _count(tables: ShopTables, train_split: str) -> list[FileCount]:
    import ray.data

    files = tables.files()
    count_one = partial(_count_one, tables=tables, train_split=train_split)
    found = ray.data.from_items(files, override_num_blocks=len(files)).map(count_one)
    return _parse_counts(found.take_all())


def _parse_counts(rows: list[dict[str, Any]]) -> list[FileCount]:
    """Return the files in order.

    Raises:
        ValueError: one of them cannot be read.
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
    """Return the samples of each set, at least one of the catalogue and, where there is such a table, of queries.

    Raises:
        ValueError: there is none.
    """
    names = {name for count in counts for name in count.samples}
    if CATALOGUE not in names:
        raise ValueError(f"{tables.products.name}: no product is valid")
    if tables.queries is not None and names == {CATALOGUE}:
        raise ValueError(f"{tables.queries.name}: not one query can be used")
    return {name: sum(count.samples.get(name, 0) for count in counts) for name in sorted(names)}


def _job(store: Store, layout: HashLayout, settings: ShardSettings, source: ManifestSource) -> ShardJob:
    return ShardJob(
        store=store,
        layout=layout,
        train_split=settings.train_split,
        max_image_side=settings.max_image_side,
        products_name=str(source.products),
        rows_id=ROWS_ID,
        download=source.download,
    )


def _write_all(
    tables: ShopTables, job: ShardJob, num_samples: Mapping[str, int], settings: RaySettings, issues: IssueLog
) -> None:
    """Write what is not finished yet, then the indexes, set by set."""
    finished, num_finished = _find_finished(job)
    num_parts = max(1, -(-sum(num_samples.values()) // settings.rows_per_part))
    with ProgressMeter(sum(num_samples.values()) - num_finished, num_finished) as progress:
        for row in _written(tables, job, finished, num_parts):
            if row["error"]:
                raise ValueError(row["error"])
            issues.add(map(RowIssue.from_json, json.loads(row["issues"])))
            progress.update(progress.num_done + row["rows"], progress.num_bytes + row["bytes"])
    for name, num_shards in job.layout.num_shards.items():
        _fill_empty(job, name, num_shards)
        finish_set(job.store, name, num_shards)
    remove_markers(job.store)


def _find_finished(job: ShardJob) -> tuple[frozenset[int], int]:
    """Return the numbers of the finished shards and how many rows they hold; those that lack rows are not."""
    finished, num_rows = set(), 0
    for name in job.layout.num_shards:
        for shard_idx, marker in finished_shards(job.store, name).items():
            if marker.rows_id == job.rows_id:
                finished.add(job.layout.number(name, shard_idx))
                num_rows += marker.size
            else:  # it lacks rows, or processes of the other engine wrote it
                remove_marker(job.store, name, marker)
    return frozenset(finished), num_rows


def _written(tables: ShopTables, job: ShardJob, finished: frozenset[int], num_parts: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each shard that was written, see `write_group`."""
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
    read_products = partial(_read_catalogue, tables=tables, layout=layout, finished=finished)
    catalogue = ray.data.from_items(products, override_num_blocks=len(products)).map_batches(
        read_products, batch_size=1
    )
    grouped = catalogue.union(joined).groupby("shard", num_partitions=min(layout.num_all, MAX_PARTITIONS))
    yield from grouped.map_groups(partial(write_group, job=job), batch_format="pyarrow").iter_rows()


def _read_for_join(
    batch: Mapping[str, Any], tables: ShopTables, layout: HashLayout, num_parts: int, train_split: str
) -> Iterator[Any]:
    yield from join_rows(tables, str(batch["table"][0]), int(batch["file"][0]), layout, num_parts, train_split)


def _read_catalogue(
    batch: Mapping[str, Any], tables: ShopTables, layout: HashLayout, finished: frozenset[int]
) -> Iterator[Any]:
    yield from catalogue_rows(tables, int(batch["file"][0]), layout, finished)


def _fill_empty(job: ShardJob, set_name: str, num_shards: int) -> None:
    """Write the shards to which no row was hashed: readers count on every number."""
    markers = finished_shards(job.store, set_name)
    for shard_idx in range(num_shards):
        if shard_idx not in markers:
            with job.store.scratch() as scratch:
                facts = write_shard(scratch / "shard", (), 0)
                place_shard(job.store, set_name, shard_idx, scratch / "shard", facts, job.rows_id)
