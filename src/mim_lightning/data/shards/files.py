"""The files of a shard set, as its readers see them wherever they are, and those in a local folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mim_lightning.data.shards.cache import (
    MissingError,
    ShardError,
    changed,
)
from mim_lightning.data.shards.open_shards import OpenShard, read_places, validate_opened, validate_shard
from mim_lightning.data.shards.set_index import (
    FIRST_VERSION,
    INDEX_FILE,
    IndexedShard,
    index_file,
    parse_pointer,
)
from mim_lightning.io.damaged_file import FileError, errors_as_damaged_file
from mim_lightning.io.locks import ReadLock
from mim_lightning.io.os_errors import describe_os_error, lacks_descriptors

if TYPE_CHECKING:
    from mim_lightning.data.shards.remote_files import RangeShard

REMEDY = "run prepare again"


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
        """Download what a reader needs, and keep its files until it has finished them."""
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
        while True:
            try:
                self._lock = ReadLock(path)
            except BlockingIOError:
                raise ValueError(describe_removal(self.folder, self.version)) from None
            locked = path
            path, content, facts = self._read_version()  # again: it may have been removed or replaced before the lock
            if path == locked:
                break
        self._index = path, index_digest(content), _stamp(facts)
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
        with _errors_as_shard_error(path):
            return path, path.read_bytes(), path.stat()

    def column(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            with _errors_as_shard_error(path):
                column = np.load(path, mmap_mode="r")
        except ShardError:
            self.validate_unchanged()
            raise
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
        with _errors_as_shard_error(index_path, f"the byte index of the shard is missing; {REMEDY}"):
            places = read_places(index_path.open("rb"), shard.size)
        with _errors_as_shard_error(tar_path, f"the shard is missing; {REMEDY}"):
            opened = OpenShard(str(tar_path), os.open(tar_path, os.O_RDONLY), places)
            if verify:
                validate_shard(opened.descriptor, shard.num_bytes, shard.crc32)
            validate_opened(opened.descriptor, places, shard.num_bytes)
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
        if index_digest(content) != digest:
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


@contextmanager
def _errors_as_shard_error(path: Path, missing: str = "there is no such file") -> Iterator[None]:
    """Turn any exception of reading a file of a set into a ShardError.

    Raises:
        ShardError: the file is damaged, or may not be read; MissingError: there is none.
        OSError: this process may open no more files, which is no fault of this one.
    """
    try:
        with errors_as_damaged_file(path, REMEDY):
            yield
    except FileNotFoundError:
        raise MissingError(f"{path}: {missing}") from None
    except FileError as error:
        raise ShardError(str(error)) from error
    except OSError as error:
        if lacks_descriptors(error):
            raise
        raise ShardError(describe_os_error(error)) from error


def describe_removal(folder: Path, version: int | None) -> str:
    """Return what to say of a version that cannot be opened any more."""
    return f"version {version} of {folder} is being removed; name a version that stays by data.version"


def index_digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _stamp(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
