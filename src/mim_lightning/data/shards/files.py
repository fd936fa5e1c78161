"""The files of a shard set: in a local folder, or downloaded from an address into a cache."""

from __future__ import annotations

import hashlib
import os
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from mim_lightning.data.shards.cache import (
    CacheSettings,
    MissingError,
    ShardCache,
    ShardError,
    as_shard_error,
    changed,
    with_mark,
)
from mim_lightning.data.shards.open_shards import OpenShard, places_size, read_places, validate_opened, validate_shard
from mim_lightning.data.shards.prefetcher import Download, Prefetcher
from mim_lightning.data.shards.range_shard import RangeShard
from mim_lightning.data.shards.set_index import (
    FIRST_VERSION,
    INDEX_FILE,
    IndexedShard,
    SetIndex,
    index_file,
    parse_index,
    parse_pointer,
)
from mim_lightning.io.damaged_file import DamagedFileError, errors_as_damaged_file, validate_regular_file
from mim_lightning.io.locks import ReadLock
from mim_lightning.io.remote import download_bytes
from mim_lightning.io.retry import RemoteError

REMEDY = "run prepare again"

_PREFETCHER = Prefetcher()


@dataclass(frozen=True)
class ShardPlan:
    """What a reader of a set needs next, as numbers of shards.

    Args:
        reader: its id.
        new: shards that became needed, to be downloaded.
        needed: all that it needs, in the order in which it needs them.
        finished: those that it needs no more.
        is_new_pass: it is about to read the set once more.
        has_workers: other processes of this machine read the shards for it.
    """

    reader: str
    new: tuple[int, ...] = ()
    needed: tuple[int, ...] = ()
    finished: tuple[int, ...] = ()
    is_new_pass: bool = False
    has_workers: bool = False

    def of_set(self, first: int, num_shards: int) -> ShardPlan:
        """Return the plan of one of several concatenated sets, whose first shard has number `first` here."""

        def own(idxs: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(idx - first for idx in idxs if 0 <= idx - first < num_shards)

        return replace(self, new=own(self.new), needed=own(self.needed), finished=own(self.finished))


class ShardFiles(Protocol):
    """The files of a shard set, wherever they are."""

    prefetch_shards: int  # shards to prefetch
    patience: float  # seconds to wait for a store
    version: int | None  # None: not known before the index is read

    @property
    def cache_room(self) -> int | None:
        """Bytes of the cache for the shards that one process needs; None: there is no cache."""
        ...

    def read_index(self) -> tuple[bytes, int]:
        """Return the content of the index of the version, and a number that changes with it.

        Raises:
            MissingError: there is no such file.
        """
        ...

    def column(self, name: str) -> np.ndarray:
        """Return a file of a column, given without its suffix, memory-mapped.

        Raises:
            MissingError: there is no such file.
            ChangedError: the set was replaced after its index was read.
        """
        ...

    def open(self, shard: IndexedShard, verify: bool) -> OpenShard:
        """Open a shard.

        Raises:
            ShardError: it is missing, damaged or not reachable; names the file.
            ChangedError: the set was replaced after its index was read.
        """
        ...

    def open_range(self, shard: IndexedShard) -> RangeShard | None:
        """Return a shard of which single samples are read without a download; None: `open` costs no more."""
        ...

    def validate_unchanged(self) -> None:
        """Raise ChangedError if the set was replaced after its index was read."""
        ...

    def plan(self, plan: ShardPlan, shard_of: Callable[[int], IndexedShard]) -> None:
        """Download, keep and let go what a reader asks for."""
        ...

    def stop(self, reader: str) -> None:
        """Forget a reader's plan."""
        ...

    def drop(self, shard: IndexedShard) -> None:
        """Remove a copy that is damaged."""
        ...


class LocalFiles:
    """The files of a set in a folder; `version` as in ShardSet."""

    prefetch_shards, patience, cache_room = 0, 0.0, None

    def __init__(self, folder: Path, version: int | None = None) -> None:
        self.folder, self.version = folder, version
        # path, digest and stamp of the index that was read
        self._index: tuple[Path, bytes, tuple[int, ...]] = folder / INDEX_FILE, b"", ()
        self._lock: ReadLock | None = None  # while it is open, its version is not removed

    def read_index(self) -> tuple[bytes, int]:
        path, content, facts = self._read_version()
        self._index = path, _digest(content), _stamp(facts)
        self._lock = ReadLock(path)
        return content, facts.st_mtime_ns

    def _read_version(self) -> tuple[Path, bytes, os.stat_result]:
        if self.version is None or self.version == FIRST_VERSION:
            path, content, facts = self._read(INDEX_FILE)
            pointer = parse_pointer(content)
            if pointer is None:
                self.version = FIRST_VERSION  # it goes on with it when there are others
                return path, content, facts
            self.version = self.version or pointer.newest(self._read(pointer.settings)[1])
        return self._read(index_file(self.version))

    def _read(self, name: str) -> tuple[Path, bytes, os.stat_result]:
        path = self.folder / name
        try:
            with errors_as_damaged_file(path, REMEDY):
                return path, path.read_bytes(), path.stat()
        except FileNotFoundError:
            raise MissingError(f"{path}: there is no such file") from None

    def column(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            with errors_as_damaged_file(path, REMEDY):
                column = np.load(path, mmap_mode="r")
        except FileNotFoundError:
            self.validate_unchanged()
            raise MissingError(f"{path}: there is no such file") from None
        self.validate_unchanged()
        return column

    def open(self, shard: IndexedShard, verify: bool) -> OpenShard:
        try:
            opened = self._open(shard, verify)
        except ShardError:
            self.validate_unchanged()
            raise
        # after opening: the folder may be replaced between reading its index and opening a shard
        self.validate_unchanged()
        return opened

    def _open(self, shard: IndexedShard, verify: bool) -> OpenShard:
        tar_path, index_path = (self.folder / f"{shard.stem}{ending}" for ending in (".tar", ".npy"))
        try:
            with errors_as_damaged_file(index_path, REMEDY):
                places = read_places(index_path.open("rb"), shard.size)
        except FileNotFoundError:
            raise ShardError(f"{index_path}: the byte index of the shard is missing; run prepare again") from None
        except DamagedFileError as error:
            raise ShardError(str(error)) from error
        except OSError as error:
            raise ShardError(f"{index_path}: damaged ({error}); run prepare again") from error
        try:
            validate_regular_file(tar_path, REMEDY)
            opened = OpenShard(str(tar_path), os.open(tar_path, os.O_RDONLY), places)
            if verify:
                validate_shard(opened.descriptor, shard.num_bytes, shard.crc32)
            validate_opened(opened.descriptor, places, shard.num_bytes)
        except FileNotFoundError:
            raise ShardError(f"{tar_path}: the shard is missing; run prepare again") from None
        except DamagedFileError as error:
            raise ShardError(str(error)) from error
        except (OSError, ValueError) as error:
            raise ShardError(f"{tar_path}: damaged ({error}); run prepare again") from error
        return opened

    def validate_unchanged(self) -> None:
        """Compare the index with the one that was read: by its stamp, and if that differs by its content."""
        path, digest, stamp = self._index
        try:
            if _stamp(path.stat()) == stamp:
                return
            path, content, facts = self._read_version()  # a version that came later moved the first one's index
        except (FileNotFoundError, MissingError):
            raise changed(str(self.folder), "is gone, or being prepared again,") from None
        if _digest(content) != digest:
            raise changed(str(self.folder))
        self._index = path, digest, _stamp(facts)

    def open_range(self, shard: IndexedShard) -> RangeShard | None:
        return None

    def plan(self, plan: ShardPlan, shard_of: Callable[[int], IndexedShard]) -> None:
        pass

    def stop(self, reader: str) -> None:
        pass

    def drop(self, shard: IndexedShard) -> None:
        pass


class RemoteFiles:
    """The files of a set at an address; `version` as in ShardSet."""

    def __init__(self, address: str, settings: CacheSettings, version: int | None = None) -> None:
        self.address, self.settings, self.version = address.rstrip("/"), settings, version
        self.prefetch_shards, self.patience = settings.prefetch_shards, settings.retry_policy.max_seconds
        self._cache, self._digest = ShardCache(self.address, "", settings), b""
        self._num_first = sys.maxsize  # shard files of the first version
        self._marks: dict[int, int] = {}  # of the columns of later versions, by version

    def read_index(self) -> tuple[bytes, int]:
        content = self._download_version()
        # it has the checksum of every shard: another content is another set, a later version adds shards to the same
        self._digest = first = _digest(content)
        if self.version != FIRST_VERSION:
            with suppress(ValueError):  # damaged, as the caller will see
                index = parse_index(content)
                first = bytes.fromhex(index.first_digest)
                self._mark(index)
        folder = hashlib.blake2b(self.address.encode() + b"\0" + first, digest_size=12)
        self._cache = ShardCache(self.address, folder.hexdigest(), self.settings)
        written = hashlib.blake2b(self.address.encode() + b"\0" + content, digest_size=12)
        return content, int.from_bytes(written.digest()[:7], "big")

    @property
    def cache_room(self) -> int:
        return self._cache.room

    def _mark(self, index: SetIndex) -> None:
        """Choose marks for the files of later versions: a version may have been made again, with other rows."""
        segments = index.column_segments()
        starts = [*map(index.first_file, range(len(segments))), len(index.stored_sizes)]
        self._num_first = starts[1] if segments[0].version == FIRST_VERSION else 0
        assert index.crc32 is not None
        for segment, start, stop in zip(segments, starts, starts[1:], strict=False):
            if segment.version != FIRST_VERSION:
                self._marks[segment.version] = zlib.crc32(index.crc32[start:stop].astype("<i8").tobytes())

    def _stem(self, shard: IndexedShard) -> str:
        """Return the name of a shard's files in the cache, without a suffix."""
        if shard.idx < self._num_first or shard.crc32 is None:
            return shard.stem
        return with_mark(shard.stem, shard.crc32)

    def _download_version(self) -> bytes:
        if self.version is None or self.version == FIRST_VERSION:
            content = self._download_file(INDEX_FILE)
            pointer = parse_pointer(content)
            if pointer is None:
                self.version = FIRST_VERSION  # it goes on with it when there are others
                return content
            self.version = self.version or pointer.newest(self._download_file(pointer.settings))
        return self._download_file(index_file(self.version))

    def _download_file(self, name: str) -> bytes:
        folder, num_up = self.address, name.count("../")
        for _ in range(num_up):
            folder = folder.rsplit("/", 1)[0]
        try:
            return download_bytes(f"{folder}/{name.removeprefix('../' * num_up)}", self.settings.retry_policy)
        except RemoteError as error:
            raise as_shard_error(error) from error

    def column(self, name: str) -> np.ndarray:
        version = int(name.partition("-")[2] or FIRST_VERSION)
        file = f"{with_mark(name, self._marks[version]) if version in self._marks else name}.npy"
        is_new = not self._cache.has(file)
        found = _map_array(self._cache.open(file))
        if is_new:
            self.validate_unchanged(file)
        return found

    def open(self, shard: IndexedShard, verify: bool) -> OpenShard:
        # a set of the first format has no checksums: a shard of another set would not be noticed
        is_new = shard.crc32 is None and not self._cache.has(f"{self._stem(shard)}.tar")
        try:
            opened = self._open(shard)
        except ShardError:
            self.validate_unchanged()
            raise
        try:
            if verify:
                validate_shard(opened.descriptor, shard.num_bytes, shard.crc32)
            validate_opened(opened.descriptor, opened.places, shard.num_bytes)
        except (OSError, ValueError) as error:
            self.drop(shard)
            self.validate_unchanged()
            raise ShardError(f"{opened.name}: its copy in {self.settings.root} is damaged ({error})") from error
        if is_new:
            self.validate_unchanged(f"{self._stem(shard)}.tar", f"{self._stem(shard)}.npy")
        return opened

    def validate_unchanged(self, *downloaded: str) -> None:
        """Download the index again and compare it; files `downloaded` meanwhile may be of another set."""
        try:
            content = self._download_version()
        except MissingError:
            reason = "is gone, or being prepared again,"
        except ShardError:  # the store is not reachable: the next download reports it
            return
        else:
            if _digest(content) == self._digest:
                return
            reason = "was prepared again with other content"
        for name in downloaded:
            self._cache.drop(name)
        raise changed(self.address, reason)

    def open_range(self, shard: IndexedShard) -> RangeShard | None:
        if all(self._cache.has(f"{self._stem(shard)}{ending}") for ending in (".tar", ".npy")):
            return None
        return RangeShard(self.address, shard, self.settings.retry_policy)

    def plan(self, plan: ShardPlan, shard_of: Callable[[int], IndexedShard]) -> None:
        needed, finished = ([self._stem(shard_of(idx)) for idx in idxs] for idxs in (plan.needed, plan.finished))
        self._cache.plan(plan.reader, needed, finished, plan.is_new_pass)
        for shard in map(shard_of, plan.new):
            task = partial(self._download, shard)
            _PREFETCHER.put(Download(plan.reader, task, self.settings.connections), plan.has_workers)

    def stop(self, reader: str) -> None:
        _PREFETCHER.stop(reader)
        self._cache.plan(reader, [], [], is_new_pass=True)

    def _download(self, shard: IndexedShard) -> None:
        self._open(shard, is_prefetch=True)

    def drop(self, shard: IndexedShard) -> None:
        for ending in (".tar", ".npy"):
            self._cache.drop(f"{self._stem(shard)}{ending}")

    def _open(self, shard: IndexedShard, is_prefetch: bool = False) -> OpenShard:
        tar, index = f"{self._stem(shard)}.tar", f"{self._stem(shard)}.npy"
        try:
            num_bytes = places_size(shard.size)
            places = _read_cached(
                self._cache.open(index, num_bytes, partial(_validate_places, shard), is_prefetch), shard.size
            )
        except ValueError as error:
            if isinstance(error, ShardError):
                raise
            self._cache.drop(index)
            raise ShardError(
                f"{self.address}/{shard.stem}.npy: its copy in {self.settings.root} is damaged ({error})"
            ) from error
        found = self._cache.open(tar, shard.num_bytes, partial(_validate_tar, shard), is_prefetch)
        return OpenShard(f"{self.address}/{shard.stem}.tar", found, places, is_cached=True)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _stamp(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


def _validate_tar(shard: IndexedShard, path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        validate_shard(descriptor, shard.num_bytes, shard.crc32)
    finally:
        os.close(descriptor)


def _validate_places(shard: IndexedShard, path: Path) -> None:
    read_places(path.open("rb"), shard.size)


def _read_cached(descriptor: int, size: int) -> np.ndarray:
    with open(descriptor, "rb") as file:
        return read_places(file, size)


def _map_array(descriptor: int) -> np.ndarray:
    with open(descriptor, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        return np.memmap(file, dtype, "r", file.tell(), shape)
