"""Removes old versions of prepared data, and the files that no other version names.

First SETTINGS_FILE is replaced by one without these versions, then files are removed: a process that is killed on the
way leaves files that nothing names, and the next call removes them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim_lightning.data.preparation.prepared import CATALOG
from mim_lightning.data.preparation.staging import LOCK_FILE, SETTINGS_FILE, staging_path
from mim_lightning.data.shards.set_index import FIRST_VERSION, index_file
from mim_lightning.data.shards.shard_writer import COLUMNS
from mim_lightning.data.versions.version_list import (
    SetFiles,
    read_settings,
    set_files,
    version_entries,
    write_entries,
)
from mim_lightning.display.numbers import format_bytes, format_count
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.locks import describe_holder, lock_for_removal, release, try_lock

OUR_FILES = re.compile(rf"\d{{6}}\.(tar|npy)|index(-\d{{6}})?\.json|({'|'.join(COLUMNS)})(-\d{{6}})?\.npy")

PROBE = f"{next(iter(COLUMNS))}-000000.npy"  # of no version, but one of OUR_FILES: a killed call's is removed


@dataclass(frozen=True)
class Pruning:
    """What a call removed."""

    versions: list[int]
    num_files: int
    num_bytes: int

    def __str__(self) -> str:
        if not self.num_files and not self.versions:
            return "nothing to remove"
        names = ", ".join(map(str, self.versions))
        versions = f"removed version{'s' if len(self.versions) > 1 else ''} {names}" if names else "no version removed"
        return f"{versions}; {format_count(self.num_files, 'file')}, {format_bytes(self.num_bytes)} freed"


def prune_versions(
    folder: Path, keep: int, runs: Mapping[int, Collection[str]] | None = None, *, is_forced: bool = False
) -> Pruning:
    """Remove all versions of prepared data but the newest.

    Args:
        folder: of the data.
        keep: number of versions that stay.
        runs: ids of the runs that read each version.
        is_forced: remove versions that runs or processes read, too.

    Raises:
        ValueError: nothing is prepared there, or another process is changing it; or, unless forced, a run reads a
            version, or a process has it open.
    """
    if keep < 1:
        raise ValueError(f"prune.keep={keep}: the newest version cannot be removed; give at least 1")
    with _locked(folder):
        settings = read_settings(folder)
        entries = version_entries(folder, settings)
        old, kept = entries[:-keep], entries[-keep:]
        numbers = [int(entry["version"]) for entry in old]
        readers = {number: sorted((runs or {}).get(number, ())) for number in numbers}
        for number, names in readers.items():
            if names and not is_forced:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise ValueError(
                    f"{folder}: version {number} is that of run {names[0]}{more}; keep more versions, delete the run, "
                    "or remove the version all the same with prune.force=true"
                )
        files = _unnamed(folder, set_files(folder, entries), set_files(folder, kept))
        with _unused(folder, files, old, is_forced):
            if old:
                with atomic_write(folder / SETTINGS_FILE) as partial:
                    partial.write_bytes(write_entries(settings, kept))
            num_bytes = sum(path.stat().st_size for path in files)
            # indexes last: by them a process is found that reads the rest
            for path in sorted(files, key=lambda path: path.suffix == ".json"):
                path.unlink(missing_ok=True)
        for set_folder in {path.parent for path in files}:
            with suppress(OSError):  # not empty
                set_folder.rmdir()
    return Pruning(numbers, len(files), num_bytes)


def _unnamed(folder: Path, before: Mapping[str, SetFiles], after: Mapping[str, SetFiles]) -> list[Path]:
    """Return the files of sets that no kept version names, those of an interrupted change or removal too."""
    queries = folder / "queries"
    splits = [f"queries/{path.name}" for path in queries.iterdir() if path.is_dir()] if queries.is_dir() else []
    found = []
    for name in dict.fromkeys((CATALOG, *splits, *before)):
        named = after[name].named(after[name].versions) if name in after else set()
        there = (folder / name).iterdir() if (folder / name).is_dir() else ()
        found += [path for path in there if OUR_FILES.fullmatch(path.name) and path.name not in named]
    return sorted(found)


@contextmanager
def _unused(folder: Path, files: Collection[Path], old: list[dict[str, Any]], is_forced: bool) -> Iterator[None]:
    """Keep processes from opening what is removed.

    Raises:
        ValueError: one has it open.
    """
    held: list[int] = []
    try:
        for path in [path for path in files if path.suffix == ".json"]:
            if path.name == index_file(FIRST_VERSION) and not is_forced and not _can_link(path):
                # those who opened it before the first change locked the file that this one was copied from
                raise ValueError(
                    f"{folder}: on a file system without hard links it is not known whether a process reads version 1; "
                    "remove it with prune.force=true when none does"
                )
            descriptor = lock_for_removal(path)
            if descriptor is not None:
                held.append(descriptor)
            elif not is_forced:
                number = int(path.stem.rpartition("-")[2]) if "-" in path.stem else 1
                name = str(path.parent.relative_to(folder))
                reading = [str(one["version"]) for one in old if one["sets"].get(name) == number]
                raise ValueError(
                    f"{folder}: a running process reads version {' or '.join(reading) or number}; wait for it to end, "
                    "keep more versions, or remove the version all the same with prune.force=true"
                )
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def _can_link(path: Path) -> bool:
    """Return whether the file system of a file has hard links."""
    probe = path.with_name(PROBE)
    try:
        os.link(path, probe)
    except FileExistsError:
        return True
    except OSError:
        return False
    probe.unlink()
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing the data."""
    staging = staging_path(folder)
    is_new = not staging.exists()
    if not (folder / SETTINGS_FILE).is_file():
        read_settings(folder)  # says what is wrong
    lock = try_lock(staging / LOCK_FILE)
    if lock is None:
        raise ValueError(f"{folder}: {describe_holder(staging / LOCK_FILE)} is changing it; wait for it to end")
    try:
        yield
    finally:
        if is_new and [path.name for path in staging.iterdir()] == [LOCK_FILE]:
            shutil.rmtree(staging, ignore_errors=True)
        release(lock)
