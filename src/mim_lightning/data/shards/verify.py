"""Verify prepared data: read every shard and compare it with its checksum, its byte index and the columns of its set.

Sets of older versions have no checksums: they are compared with what they have.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from mim_lightning.data.shards.open_shards import read_array_header, read_places
from mim_lightning.data.shards.set_index import FIRST_VERSION, INDEX_FILE, index_file, parse_index, parse_pointer
from mim_lightning.data.shards.set_writer import shard_path
from mim_lightning.data.shards.shard_writer import COLUMNS, ShardFacts, read_shard
from mim_lightning.display.progress import ProgressMeter
from mim_lightning.io.damaged_file import (
    DamagedFileError,
    describe_error,
    errors_as_damaged_file,
    validate_regular_file,
)
from mim_lightning.io.paths import PathOrUrl
from mim_lightning.io.store import Store

NUM_READERS = 4  # shards read at once


@dataclass(frozen=True)
class VerificationResult:
    """Number of verified shards and rows, and a line per damaged file, beginning with its name."""

    num_shards: int
    num_rows: int
    damaged: tuple[str, ...]


def verify_sets(
    folder: PathOrUrl, set_names: Iterable[str], versions: Mapping[str, int] | None = None
) -> VerificationResult:
    """Read every shard of the sets in a prepared folder; damage is reported, not raised.

    Args:
        versions: of sets that have several, by name.
    """
    store, damaged, checks = Store(folder), list[str](), list[_Shard]()
    for name in set_names:
        version = (versions or {}).get(name, FIRST_VERSION)
        index_name = INDEX_FILE if version == FIRST_VERSION else index_file(version)
        try:
            checks += list(_shards(store, name, index_name))
        except Exception as error:  # reading a damaged file can raise anything
            damaged.append(f"{name}/{index_name}: {describe_error(error)}")
    num_rows = sum(shard.stop - shard.start for shard in checks)
    num_read = num_bytes = 0
    with ProgressMeter(num_rows, verb="read") as progress, ThreadPoolExecutor(NUM_READERS) as pool:
        for shard, (size, reason) in zip(checks, pool.map(lambda shard: _verify(store, shard), checks), strict=True):
            if reason:
                damaged.append(f"{shard.path('.tar')}: {reason}")
            num_read, num_bytes = num_read + shard.stop - shard.start, num_bytes + size
            progress.update(num_read, num_bytes)
    return VerificationResult(len(checks), num_rows, tuple(damaged))


@dataclass(frozen=True)
class _Shard:
    """A shard as the index describes it; rows `start` to `stop` of the files of columns."""

    set_name: str
    shard_idx: int  # in the names of its files
    start: int
    stop: int
    num_bytes: int | None  # None: not in the index
    crc32: int | None
    columns: Mapping[str, str]  # name -> file
    column_size: int  # values of each of these files

    def path(self, suffix: str) -> str:
        return shard_path(self.set_name, self.shard_idx, suffix)


def _shards(store: Store, set_name: str, index_name: str) -> Iterator[_Shard]:
    _validate_regular(store, f"{set_name}/{index_name}")
    content = store.read(f"{set_name}/{index_name}")
    index = parse_index(content if parse_pointer(content) is None else store.read(f"{set_name}/{index_file(1)}"))
    segments = index.column_segments()
    firsts = list(accumulate((segment.size for segment in segments), initial=0))
    names = tuple(COLUMNS) if index.num_bytes is not None else ("keys",)
    for shard in map(index.shard, range(len(index.sizes))):
        start = int(index.row_starts[shard.idx])
        segment_idx = bisect_right(firsts, start) - 1
        files = {name: segments[segment_idx].column_file(name) for name in names}
        start -= firsts[segment_idx]
        yield _Shard(
            set_name,
            shard.idx,
            start,
            start + shard.size,
            shard.num_bytes,
            shard.crc32,
            files,
            segments[segment_idx].size,
        )


def _verify(store: Store, shard: _Shard) -> tuple[int, str | None]:
    """Return the size of a shard, and its damage, None if there is none."""
    tar = shard.path(".tar")
    size = max(0, store.size(tar))
    try:
        if shard.num_bytes not in (None, size) and size:
            return size, f"{size} bytes, not {shard.num_bytes}"
        with errors_as_damaged_file(tar):
            _validate_regular(store, tar)
            with store.open(tar) as file:
                found = read_shard(file)
        return size, found.difference(_expected(store, shard, found))
    except FileNotFoundError as error:
        missing = Path(str(error.filename or "")).name
        return size, f"{shard.set_name}/{missing} is missing" if missing else "a file of the shard is missing"
    except DamagedFileError as error:
        return size, error.reason if error.path == tar else f"{error.path}: {error.reason}"
    except OSError as error:
        return size, describe_error(error)


def _validate_regular(store: Store, name: str) -> None:
    if store.is_local:
        validate_regular_file(Path(store.address) / name)


def _expected(store: Store, shard: _Shard, found: ShardFacts) -> ShardFacts:
    """Return the facts of a shard according to the other files; facts that they lack are as found."""
    with errors_as_damaged_file(shard.path(".npy")):
        _validate_regular(store, shard.path(".npy"))
        places = read_places(io.BytesIO(store.read(shard.path(".npy"))), shard.stop - shard.start)
    columns = {
        name: _slice(store, f"{shard.set_name}/{file}", np.dtype(COLUMNS[name]), shard)
        for name, file in shard.columns.items()
    }
    indexed: Mapping[str, Any] = {"num_bytes": shard.num_bytes, "crc32": shard.crc32}
    known = {name: value for name, value in indexed.items() if value is not None}
    return replace(found, places=places, columns={**found.columns, **columns}, **known)


def _slice(store: Store, name: str, kind: np.dtype, shard: _Shard) -> np.ndarray:
    """Read the rows of a shard of a column only: it may have gigabytes."""
    with errors_as_damaged_file(name):
        _validate_regular(store, name)
        with store.open(name) as file:
            shape, _, found = read_array_header(file)
            if found != kind or shape != (shard.column_size,):
                raise ValueError(f"{found} of shape {shape}, not {shard.column_size} values of {kind}")
            file.seek(file.tell() + shard.start * kind.itemsize)
            return np.frombuffer(file.read((shard.stop - shard.start) * kind.itemsize), dtype=kind)
