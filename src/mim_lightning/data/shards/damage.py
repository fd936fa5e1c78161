"""Find missing or damaged files of a local shard set: shards, columns, or the index itself.

Use it before relying on data that were prepared earlier; `verify` checks the content of every shard.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mim_lightning.data.shards.cache import ShardError
from mim_lightning.data.shards.files import LocalFiles
from mim_lightning.data.shards.open_shards import MEMBERS
from mim_lightning.data.shards.set_index import ColumnSegment, IndexedShard
from mim_lightning.data.shards.shard_set import ShardSet

PLACE_BYTES = len(MEMBERS) * 2 * 8  # of a sample in the byte index


@dataclass(frozen=True)
class Damage:
    """The files of a set that must be written again."""

    set_name: str
    shard_idxs: tuple[int, ...] = ()  # number in the files' names, of a missing or damaged tar file or byte index
    columns: tuple[str, ...] = ()  # names of files
    is_unknown: bool = False  # the index itself is missing

    def __str__(self) -> str:
        if self.is_unknown:
            return f"{self.set_name}/index.json"
        names = [f"{self.set_name}/{idx:06d}.tar" for idx in self.shard_idxs]
        names += [f"{self.set_name}/{column}" for column in self.columns]
        return names[0] + (f" and {len(names) - 1} further files" if len(names) > 1 else "")


def find_damage(
    shards: ShardSet,
    set_name: str,
    columns: Sequence[str],
    is_thorough: bool,
    on_shard: Callable[[IndexedShard], None] = lambda shard: None,
) -> Damage | None:
    """Return which files of a set in a folder are missing or damaged, or None.

    Args:
        set_name: of the set in its prepared folder.
        columns: required besides the keys; sets of the first format have none.
        is_thorough: compare the checksums of whole shards, not only their sizes.
        on_shard: called after each shard.

    Raises:
        OSError: this process may open no more files, or the disk fails.
    """
    files, index = shards.files, shards.index
    assert isinstance(files, LocalFiles)
    try:
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(files.folder)}
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return Damage(set_name, is_unknown=True)
    damaged = []
    for shard in map(index.shard, range(len(index.sizes))):
        if not (_is_sound(files, shard) if is_thorough else _has_size(sizes, shard)):
            damaged.append(shard.idx)
        on_shard(shard)
    wanted = columns if index.num_bytes is not None else ("keys",)
    segments = [(column, segment) for column in wanted for segment in index.column_segments()]
    lost = tuple(segment.column_file(column) for column, segment in segments if not _is_column(files, column, segment))
    return Damage(set_name, tuple(damaged), lost) if damaged or lost else None


def _has_size(sizes: dict[str, int], shard: IndexedShard) -> bool:
    num_bytes = sizes.get(f"{shard.stem}.tar")
    has_tar = num_bytes is not None and shard.num_bytes in (None, num_bytes)
    return has_tar and sizes.get(f"{shard.stem}.npy", 0) > shard.size * PLACE_BYTES


def _is_sound(files: LocalFiles, shard: IndexedShard) -> bool:
    try:
        files.open(shard, verify=True)
    except ShardError:
        return False
    return True


def _is_column(files: LocalFiles, name: str, segment: ColumnSegment) -> bool:
    try:
        return files.column(segment.column_file(name).removesuffix(".npy")).shape == (segment.size,)
    except ValueError:
        return False
