"""The next version of a set in a folder: further shards and removed rows, beside everything that is there.

Files of earlier versions stay as they are, and no version reads the new ones before the settings of the prepared data
name them: a process that is killed on the way leaves the former version, and the next attempt replaces what it left.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from mim_lightning.data.shards.open_shards import MEMBERS
from mim_lightning.data.shards.set_index import (
    FIRST_VERSION,
    INDEX_FILE,
    ColumnSegment,
    Pointer,
    SetIndex,
    index_file,
    parse_index,
    parse_pointer,
)
from mim_lightning.data.shards.shard_writer import COLUMNS
from mim_lightning.io.atomic import atomic_write


def write_version(
    folder: Path, set_name: str, parent: SetIndex | None, staged: Path | None, removed: np.ndarray, version: int
) -> str:
    """Write the next version of a set, and return the id of its content.

    Args:
        folder: of the prepared data.
        set_name: in that folder.
        parent: the version that is changed; None: the set is new.
        staged: a finished set of the samples to add; its files are linked or copied.
        removed: numbers of rows (not samples) of the parent to remove, which may have been removed before.
        version: its number.

    Raises:
        ValueError: the parent is of the first format, without checksums.
        OSError: a file could not be written.
    """
    target = folder / set_name
    target.mkdir(parents=True, exist_ok=True)
    index = _extend(parent, removed, version)
    if parent is not None and parent.num_bytes is None:
        raise ValueError(f"{target}: was prepared by an old version; run prepare with overwrite=true")
    if staged is not None:
        index = _add_shards(index, parse_index((staged / INDEX_FILE).read_bytes()), staged, target, version)
    if not index.first_digest:
        first = _first_digest(target) if parent is not None else _hash(index.to_json(MEMBERS)["crc32"])
        index = replace(index, first_digest=first)
    if parent is not None:
        _keep_first_index(target, set_name)
    else:
        _write_pointer(folder, set_name)
    content = json.dumps(index.to_json(MEMBERS)).encode()
    with atomic_write(target / index_file(version)) as partial:
        partial.write_bytes(content)
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _write_pointer(folder: Path, set_name: str) -> None:
    with atomic_write(folder / set_name / INDEX_FILE) as partial:
        partial.write_bytes(Pointer(set_name).to_json())


def _extend(parent: SetIndex | None, removed: np.ndarray, version: int) -> SetIndex:
    if parent is None:
        none = np.zeros(0, dtype=np.int64)
        return SetIndex([], 1, none, none, version=version)
    return SetIndex(
        parent.stored_sizes,
        parent.max_relevant,
        parent.num_bytes,
        parent.crc32,
        parent.column_segments(),
        np.union1d(parent.removed, removed).astype(np.int64),
        version,
        parent.first_digest,
    )


def _add_shards(index: SetIndex, new: SetIndex, staged: Path, target: Path, version: int) -> SetIndex:
    first = len(index.stored_sizes)
    for idx in range(len(new.stored_sizes)):
        for ending in (".npy", ".tar"):
            place_file(staged / f"{idx:06d}{ending}", target / f"{first + idx:06d}{ending}")
    segment = ColumnSegment(version, new.num_rows)
    for name in COLUMNS:
        place_file(staged / f"{name}.npy", target / segment.column_file(name))
    assert index.num_bytes is not None
    assert new.num_bytes is not None
    assert index.crc32 is not None
    assert new.crc32 is not None
    return replace(
        index,
        stored_sizes=[*index.stored_sizes, *new.stored_sizes],
        max_relevant=max(index.max_relevant, new.max_relevant),
        num_bytes=np.concatenate([index.num_bytes, new.num_bytes]),
        crc32=np.concatenate([index.crc32, new.crc32]),
        segments=(*index.segments, segment),
    )


def place_file(source: Path, target: Path) -> None:
    """Give a file a second name, so that an interrupted call can be repeated; one that is there is replaced."""
    with atomic_write(target, is_synced=False) as partial:
        try:
            os.link(source, partial)
        except OSError:  # a file system without links
            shutil.copy2(source, partial)


def _keep_first_index(target: Path, set_name: str) -> None:
    """Keep the index of the first version under its own name, then replace it by a pointer."""
    if parse_pointer((target / INDEX_FILE).read_bytes()) is not None:
        return
    # the same file, which stays locked by those who read it
    place_file(target / INDEX_FILE, target / index_file(FIRST_VERSION))
    _write_pointer(target.parents[set_name.count("/")], set_name)


def _first_digest(target: Path) -> str:
    content = (target / INDEX_FILE).read_bytes()
    if parse_pointer(content) is not None:
        content = (target / index_file(FIRST_VERSION)).read_bytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _hash(values: list[int]) -> str:
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=16).hexdigest()
