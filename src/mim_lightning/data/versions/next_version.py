"""Writes the next version of prepared data: rows are added, replaced and deleted; earlier versions stay as they are.

The new shards are written in the staging directory of the data and linked into their sets; at last SETTINGS_FILE is
replaced, which makes the version the newest. Before that moment nothing reads it, and the next attempt starts from what
an interrupted one finished. Only folders can be changed: a store has neither locks nor renames.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mim_lightning.data.images.download import DownloadSettings
from mim_lightning.data.manifest.row_store import rows_in
from mim_lightning.data.preparation.hash_layout import NAMES_PER_SHARD
from mim_lightning.data.preparation.local_engine import WritingSettings, write_sets
from mim_lightning.data.preparation.plan import BY_PRODUCT, SHUFFLED
from mim_lightning.data.preparation.preparation import Validation
from mim_lightning.data.preparation.prepared import COMPOSE, CONTENT, PreparedData, ShardSettings, open_prepared
from mim_lightning.data.preparation.staging import IMAGES_FILE, SETTINGS_FILE, WORK_FILE, staging_dir, staging_path
from mim_lightning.data.shards.set_index import FIRST_VERSION, VERSIONS, SetIndex
from mim_lightning.data.validation.image_hashes import ADDED, find_hash_files, hashes_path, write_no_hashes
from mim_lightning.data.versions.change import Change
from mim_lightning.data.versions.known_rows import KnownRows
from mim_lightning.data.versions.set_versions import place_file, write_version
from mim_lightning.data.versions.version_plan import REPORTS, VersionPlan, num_samples, plan_version
from mim_lightning.io.atomic import atomic_write, atomic_write_folder
from mim_lightning.io.paths import PathOrUrl
from mim_lightning.io.store import Store

CHANGE = "change"  # in the description of unfinished work


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
    described = {CHANGE: {**change.describe(), "parent": parent.version}}
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
            plan = plan_version(change, rows, settings, validation, staging, number, download)
            if not plan.sets:
                print("\n".join([*plan.lines, f"{folder}: nothing to change, version {parent.version} stays"]))
                (staging / IMAGES_FILE).unlink(missing_ok=True)
                return parent
            writing = WritingSettings(settings.samples_per_shard, settings.max_image_side, num_workers)
            _write(plan, parent, staging, writing, number, described[CHANGE])
        print("\n".join(plan.lines))
        shutil.rmtree(staging, ignore_errors=True)
    return open_prepared(folder)


def _write(
    plan: VersionPlan,
    parent: PreparedData,
    staging: Path,
    writing: WritingSettings,
    number: int,
    change: Mapping[str, Any],
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
        num_left = num_samples(parent, part.name) - len(part.removed) + len(part.samples)
        counts[part.name] = {"removed": len(part.removed), "added": len(part.samples), "samples": num_left}
        if not num_left:
            del content[part.name], versions[part.name]
    if plan.report is not None and plan.report.is_dir():
        with atomic_write_folder(folder / REPORTS / f"{number:06d}") as partial:
            for file in plan.report.iterdir():  # one by one: copytree makes a list of a full disk's errors
                shutil.copyfile(file, partial / file.name)
    hashes = hashes_path(staging, number, ADDED)
    if find_hash_files(folder, parent.version):  # else they are computed with the next addition
        if not hashes.is_file():  # nothing was added
            write_no_hashes(hashes)
        place_file(hashes, hashes_path(folder, number, ADDED))
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
    settings.pop(COMPOSE, None)
    return ShardSettings(**settings, layout=layout)
