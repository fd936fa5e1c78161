"""The files of a shard set: in a local folder, or downloaded from an address into a cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
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
)
from mim_lightning.data.shards.open_shards import OpenShard, places_size, read_places, validate_opened, validate_shard
from mim_lightning.data.shards.prefetcher import Download, Prefetcher
from mim_lightning.data.shards.range_shard import RangeShard
from mim_lightning.data.shards.set_index import IndexedShard
from mim_lightning.io.damaged_file import DamagedFileError, errors_as_damaged_file, validate_regular_file
from mim_lightning.io.remote import download_bytes
from mim_lightning.io.retry import RemoteError

INDEX_FILE = "index.json"
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

    def read_index(self) -> tuple[bytes, int]:
        """Return the content of index.json, and a number that changes with it.

        Raises:
            MissingError: there is no such file.
        """
        ...

    def column(self, name: str) -> np.ndarray:
        """Return a column, memory-mapped.

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
    prefetch_shards, patience = 0, 0.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index: tuple[bytes, tuple[int, ...]] = b"", ()  # digest and stamp of the file that was read

    def read_index(self) -> tuple[bytes, int]:
        path = self.folder / INDEX_FILE
        try:
            with errors_as_damaged_file(path, REMEDY):
                content, facts = path.read_bytes(), path.stat()
        except FileNotFoundError:
            raise MissingError(f"{path}: there is no such file") from None
        self._index = _digest(content), _stamp(facts)
        return content, facts.st_mtime_ns

    def column(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            with errors_as_damaged_file(path, REMEDY):
                column = np.load(path, mmap_mode="r")
        except FileNotFoundError:
            self._validate_unchanged()
            raise MissingError(f"{path}: there is no such file") from None
        self._validate_unchanged()
        return column

    def open(self, shard: IndexedShard, verify: bool) -> OpenShard:
        try:
            opened = self._open(shard, verify)
        except ShardError:
            self._validate_unchanged()
            raise
        # after opening: the folder may be replaced between reading its index and opening a shard
        self._validate_unchanged()
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

    def _validate_unchanged(self) -> None:
        """Compare the index with the one that was read: by its stamp, and if that differs by its content."""
        path = self.folder / INDEX_FILE
        digest, stamp = self._index
        try:
            if _stamp(path.stat()) == stamp:
                return
            facts, content = path.stat(), path.read_bytes()
        except FileNotFoundError:
            raise changed(str(self.folder), "is gone, or being prepared again,") from None
        if _digest(content) != digest:
            raise changed(str(self.folder))
        self._index = digest, _stamp(facts)

    def open_range(self, shard: IndexedShard) -> RangeShard | None:
        return None

    def plan(self, plan: ShardPlan, shard_of: Callable[[int], IndexedShard]) -> None:
        pass

    def stop(self, reader: str) -> None:
        pass

    def drop(self, shard: IndexedShard) -> None:
        pass


class RemoteFiles:
    def __init__(self, address: str, settings: CacheSettings) -> None:
        self.address, self.settings = address.rstrip("/"), settings
        self.prefetch_shards, self.patience = settings.prefetch_shards, settings.retry_policy.max_seconds
        self._cache, self._digest = ShardCache(self.address, "", settings), b""

    def read_index(self) -> tuple[bytes, int]:
        content = self._download_index()
        # it has the checksum of every shard: another content gets another folder
        self._digest = _digest(content)
        version = hashlib.blake2b(self.address.encode() + b"\0" + content, digest_size=12)
        self._cache = ShardCache(self.address, version.hexdigest(), self.settings)
        return content, int.from_bytes(version.digest()[:7], "big")

    def _download_index(self) -> bytes:
        try:
            return download_bytes(f"{self.address}/{INDEX_FILE}", self.settings.retry_policy)
        except RemoteError as error:
            raise as_shard_error(error) from error

    def column(self, name: str) -> np.ndarray:
        is_new = not self._cache.has(f"{name}.npy")
        found = _map_array(self._cache.open(f"{name}.npy"))
        if is_new:
            self._validate_unchanged(f"{name}.npy")
        return found

    def open(self, shard: IndexedShard, verify: bool) -> OpenShard:
        # a set of the first format has no checksums: a shard of another set would not be noticed
        is_new = shard.crc32 is None and not self._cache.has(f"{shard.stem}.tar")
        try:
            opened = self._open(shard)
        except ShardError:
            self._validate_unchanged()
            raise
        try:
            if verify:
                validate_shard(opened.descriptor, shard.num_bytes, shard.crc32)
            validate_opened(opened.descriptor, opened.places, shard.num_bytes)
        except (OSError, ValueError) as error:
            self.drop(shard)
            self._validate_unchanged()
            raise ShardError(f"{opened.name}: its copy in {self.settings.root} is damaged ({error})") from error
        if is_new:
            self._validate_unchanged(f"{shard.stem}.tar", f"{shard.stem}.npy")
        return opened

    def _validate_unchanged(self, *downloaded: str) -> None:
        """Download the index again and compare it; files `downloaded` meanwhile may be of another set."""
        try:
            content = self._download_index()
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
        if self._cache.has(f"{shard.stem}.tar") and self._cache.has(f"{shard.stem}.npy"):
            return None
        return RangeShard(self.address, shard, self.settings.retry_policy)

    def plan(self, plan: ShardPlan, shard_of: Callable[[int], IndexedShard]) -> None:
        needed, finished = ([shard_of(idx).stem for idx in idxs] for idxs in (plan.needed, plan.finished))
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
            self._cache.drop(f"{shard.stem}{ending}")

    def _open(self, shard: IndexedShard, is_prefetch: bool = False) -> OpenShard:
        tar, index = f"{shard.stem}.tar", f"{shard.stem}.npy"
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
                f"{self.address}/{index}: its copy in {self.settings.root} is damaged ({error})"
            ) from error
        found = self._cache.open(tar, shard.num_bytes, partial(_validate_tar, shard), is_prefetch)
        return OpenShard(f"{self.address}/{tar}", found, places, is_cached=True)


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
