"""The versions of prepared data in a folder: what each changed, when, and which of its files no other version names."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mim_lightning.data.preparation.prepared import CATALOG, CONTENT, QUERY_SETS, PreparedData
from mim_lightning.data.preparation.staging import SETTINGS_FILE
from mim_lightning.data.shards.set_index import (
    FIRST_VERSION,
    INDEX_FILE,
    VERSIONS,
    SetIndex,
    index_file,
    parse_index,
    parse_pointer,
)
from mim_lightning.data.shards.shard_writer import COLUMNS
from mim_lightning.display.numbers import format_bytes, format_count


@dataclass(frozen=True)
class DataVersion:
    """One version.

    Attributes:
        created: local time.
        rows: what it changed in each set: "added", "removed", and "samples" that it has afterwards.
        num_bytes: of the files that it brought and that are still there.
        set_versions: the version of each of its sets, that is the last one that changed it.
    """

    number: int
    created: datetime
    rows: Mapping[str, Mapping[str, int]]
    num_bytes: int
    set_versions: Mapping[str, int]
    is_newest: bool = False

    def describe(self, runs: Collection[str] = ()) -> str:
        """Return a line about it.

        Args:
            runs: ids of the runs that read it.
        """
        rows = ", ".join(f"{_title(name)} {_describe_rows(found)}" for name, found in self.rows.items())
        newest = " (the newest)" if self.is_newest else ""
        read_by = f"; read by {format_count(len(runs), 'run')}: {', '.join(sorted(runs))}" if runs else ""
        when = f"{self.created:%Y-%m-%d %H:%M}"
        return f"version {self.number}{newest}, {when}: {rows}; {format_bytes(self.num_bytes)}{read_by}"


@dataclass(frozen=True)
class SetFiles:
    """The files of a set, by the versions that name them.

    Args:
        folder: of the set.
        versions: of the set, that some version of the data has.
    """

    folder: Path
    versions: Collection[int]
    _indexes: dict[int, SetIndex] = field(default_factory=dict)

    def index_path(self, version: int) -> Path:
        """Return the path of the index of a version of the set."""
        first = self.folder / INDEX_FILE
        if version == FIRST_VERSION and parse_pointer(first.read_bytes()) is None:
            return first
        return self.folder / index_file(version)

    def index(self, version: int) -> SetIndex:
        if version not in self._indexes:
            self._indexes[version] = parse_index(self.index_path(version).read_bytes())
        return self._indexes[version]

    def named(self, versions: Iterable[int]) -> set[str]:
        """Return the names of the files that some versions of the set read."""
        names: set[str] = set()
        for version in versions:
            index = self.index(version)
            names |= {INDEX_FILE, self.index_path(version).name}
            names |= {segment.column_file(column) for segment in index.column_segments() for column in COLUMNS}
            names |= {f"{idx:06d}{ending}" for idx in index.file_idxs for ending in (".tar", ".npy")}
        return names

    def brought_by(self, version: int) -> set[str]:
        """Return the names of the files that came with a version of the set."""
        index = self.index(version)
        segments = index.column_segments()
        idxs = [idx for idx, segment in enumerate(segments) if segment.version == version]
        names = {self.index_path(version).name}
        for idx in idxs:
            last = index.first_file(idx + 1) if idx + 1 < len(segments) else len(index.stored_sizes)
            names |= {f"{file:06d}{end}" for file in range(index.first_file(idx), last) for end in (".tar", ".npy")}
            names |= {segments[idx].column_file(column) for column in COLUMNS}
        return names


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of prepared data.

    Raises:
        ValueError: nothing is prepared there, or the file is damaged.
    """
    prepared = PreparedData(folder)
    if not prepared.exists:
        raise ValueError(f"{folder}: no prepared data here; give that of `mim prepare` as data.folder=<folder>")
    return prepared.describe()


def version_entries(folder: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the settings say of each version, also of data that were never changed."""
    if settings.get(VERSIONS):
        return list(settings[VERSIONS])
    content = PreparedData(folder).content()
    return [{"version": FIRST_VERSION, "sets": dict.fromkeys(content, FIRST_VERSION), CONTENT: content}]


def list_versions(folder: Path) -> list[DataVersion]:
    """Return the versions of prepared data, the newest last.

    Raises:
        ValueError: nothing is prepared there, or a file is damaged.
    """
    settings = read_settings(folder)
    entries = version_entries(folder, settings)
    files = set_files(folder, entries)
    return [_read_version(folder, entry, files, entry is entries[-1]) for entry in entries]


def set_files(folder: Path, entries: Iterable[Mapping[str, Any]]) -> dict[str, SetFiles]:
    """Return the files of each set, by its name."""
    versions: dict[str, set[int]] = {}
    for entry in entries:
        for name, version in entry["sets"].items():
            versions.setdefault(name, set()).add(int(version))
    return {name: SetFiles(folder / name, found) for name, found in versions.items()}


def _read_version(
    folder: Path, entry: Mapping[str, Any], files: Mapping[str, SetFiles], is_newest: bool
) -> DataVersion:
    number, sets = int(entry["version"]), {name: int(version) for name, version in entry["sets"].items()}
    new = {name: files[name] for name, version in sets.items() if version == number}
    paths = [found.folder / name for found in new.values() for name in found.brought_by(number)]
    if "created" in entry:
        created = datetime.fromisoformat(entry["created"])
    else:  # the first: its index keeps its time
        first = [found.index_path(number) for found in new.values()] or [folder / SETTINGS_FILE]
        # in whole seconds, like those of later versions: one made within the second is not before it
        created = datetime.fromtimestamp(int(max(path.stat().st_mtime for path in first)), UTC)
    rows = entry.get("rows") or {
        name: {"added": found.index(number).num_rows, "removed": 0, "samples": found.index(number).num_rows}
        for name, found in new.items()
    }
    num_bytes = sum(path.stat().st_size for path in paths if path.exists())
    return DataVersion(number, created.astimezone(), rows, num_bytes, sets, is_newest)


def _describe_rows(rows: Mapping[str, int]) -> str:
    changes = [f"{sign}{rows[key]:,}" for sign, key in (("+", "added"), ("-", "removed")) if rows[key]]
    return f"{' '.join(changes)} = {rows['samples']:,}"


def _title(set_name: str) -> str:
    return "catalog" if set_name == CATALOG else set_name.removeprefix(QUERY_SETS)


def write_entries(settings: Mapping[str, Any], entries: list[dict[str, Any]]) -> bytes:
    """Return the settings with other versions."""
    return json.dumps({**settings, VERSIONS: entries}, indent=2).encode()
