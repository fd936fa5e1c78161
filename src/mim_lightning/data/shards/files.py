"""The files of a shard set, wherever they stand: in a folder of this machine, or at an address, fetched into a cache.

Numbers of shards and names of columns come in, open shards and memory-mapped arrays go out; `shard_set` calls it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from mim_lightning.data.shards.cache import (
    Ahead,
    CacheSettings,
    MissingError,
    ShardCache,
    ShardError,
    as_shard_error,
    changed,
)
from mim_lightning.data.shards.open_shards import OpenShard, read_places, validate_opened, validate_shard
from mim_lightning.data.shards.set_index import IndexedShard
from mim_lightning.io.damaged_file import DamagedFileError, errors_as_damaged_file, validate_regular_file
from mim_lightning.io.remote import download_bytes
from mim_lightning.io.retry import RemoteError

INDEX_FILE = "index.json"
AGAIN = "run prepare again"

_AHEAD = Ahead()


class ShardFiles(Protocol):
    """What a ShardSet asks of the place it stands at."""

    prefetch_shards: int  # shards to be fetched before they are needed
    patience: float  # seconds for which a store is waited for

    def read_index(self) -> tuple[bytes, int]:
        """Return the content of index.json, and a number that it has to itself.

        Raises:
            MissingError: there is none.
        """
        ...

    def column(self, name: str) -> np.ndarray:
        """Return a column, memory-mapped.

        Raises:
            MissingError: there is none.
            ChangedError: the set is another one than that whose index was read.
        """
        ...

    def open(self, shard: IndexedShard, verify: bool) -> OpenShard:
        """Open a shard.

        Raises:
            ShardError: missing, damaged or out of reach; names the file.
            ChangedError: the set is another one than that whose index was read.
        """
        ...

    def prefetch(self, shards: Iterable[IndexedShard]) -> None: ...

    def drop(self, shard: IndexedShard) -> None:
        """Forget a copy that turned out damaged."""
        ...


class LocalFiles:
    prefetch_shards, patience = 0, 0.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index: tuple[bytes, tuple[int, ...]] = b"", ()  # digest of the file that was read, and its stamp

    def read_index(self) -> tuple[bytes, int]:
        path = self.folder / INDEX_FILE
        try:
            with errors_as_damaged_file(path, AGAIN):
                content, facts = path.read_bytes(), path.stat()
        except FileNotFoundError:
            raise MissingError(f"{path}: there is no such file") from None
        self._index = _digest(content), _stamp(facts)
        return content, facts.st_mtime_ns

    def column(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            with errors_as_damaged_file(path, AGAIN):
                found = np.load(path, mmap_mode="r")
        except FileNotFoundError:
            self._refuse_change()
            raise MissingError(f"{path}: there is no such file") from None
        self._refuse_change()
        return found

    def open(self, shard: IndexedShard, verify: bool) -> OpenShard:
        try:
            opened = self._open(shard, verify)
        except ShardError:
            self._refuse_change()
            raise
        # now: a folder may be replaced between a look at its index and the opening of a shard
        self._refuse_change()
        return opened

    def _open(self, shard: IndexedShard, verify: bool) -> OpenShard:
        tar_path, index_path = (self.folder / f"{shard.stem}{ending}" for ending in (".tar", ".npy"))
        try:
            with errors_as_damaged_file(index_path, AGAIN):
                places = read_places(index_path.open("rb"), shard.size)
        except FileNotFoundError:
            raise ShardError(f"{index_path}: the byte index of the shard is missing; run prepare again") from None
        except DamagedFileError as error:
            raise ShardError(str(error)) from error
        except OSError as error:
            raise ShardError(f"{index_path}: damaged ({error}); run prepare again") from error
        try:
            validate_regular_file(tar_path, AGAIN)
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

    def _refuse_change(self) -> None:
        """Compare the index with the one that was read: by its stamp, and where that differs by its content."""
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

    def prefetch(self, shards: Iterable[IndexedShard]) -> None:
        pass

    def drop(self, shard: IndexedShard) -> None:
        pass


class RemoteFiles:
    def __init__(self, address: str, settings: CacheSettings) -> None:
        self.address, self.settings = address.rstrip("/"), settings
        self.prefetch_shards, self.patience = settings.prefetch_shards, settings.retry_policy.max_seconds
        self._cache, self._digest = ShardCache(self.address, "", settings), b""

    def read_index(self) -> tuple[bytes, int]:
        content = self._fetch_index()
        # it tells the checksum of every shard: other content, another folder
        self._digest = _digest(content)
        version = hashlib.blake2b(self.address.encode() + b"\0" + content, digest_size=12)
        self._cache = ShardCache(self.address, version.hexdigest(), self.settings)
        return content, int.from_bytes(version.digest()[:7], "big")

    def _fetch_index(self) -> bytes:
        try:
            return download_bytes(f"{self.address}/{INDEX_FILE}", self.settings.retry_policy)
        except RemoteError as error:
            raise as_shard_error(error) from error

    def column(self, name: str) -> np.ndarray:
        is_new = not self._cache.has(f"{name}.npy")
        found = _map_array(self._cache.open(f"{name}.npy"))
        if is_new:
            self._refuse_change(f"{name}.npy")
        return found

    def open(self, shard: IndexedShard, verify: bool) -> OpenShard:
        # a set of the first format tells no checksums: nobody would see that what is fetched is another shard
        is_new = shard.crc32 is None and not self._cache.has(f"{shard.stem}.tar")
        try:
            opened = self._open(shard)
        except ShardError:
            self._refuse_change()
            raise
        try:
            if verify:
                validate_shard(opened.descriptor, shard.num_bytes, shard.crc32)
            validate_opened(opened.descriptor, opened.places, shard.num_bytes)
        except (OSError, ValueError) as error:
            self.drop(shard)
            self._refuse_change()
            raise ShardError(f"{opened.name}: its copy in {self.settings.root} is damaged ({error})") from error
        if is_new:
            self._refuse_change(f"{shard.stem}.tar", f"{shard.stem}.npy")
        return opened

    def _refuse_change(self, *fetched: str) -> None:
        """Fetch the index again and compare it; what was `fetched` meanwhile would be of another set than it says."""
        try:
            content = self._fetch_index()
        except MissingError:
            reason = "is gone, or being prepared again,"
        except ShardError:  # the store is out of reach: whoever needs a file of it will say so
            return
        else:
            if _digest(content) == self._digest:
                return
            reason = "was prepared again with other content"
        for name in fetched:
            self._cache.drop(name)
        raise changed(self.address, reason)

    def prefetch(self, shards: Iterable[IndexedShard]) -> None:
        for shard in shards:
            _AHEAD.put(partial(self._open, shard, is_ahead=True))

    def drop(self, shard: IndexedShard) -> None:
        for ending in (".tar", ".npy"):
            self._cache.drop(f"{shard.stem}{ending}")

    def _open(self, shard: IndexedShard, is_ahead: bool = False) -> OpenShard:
        tar, index = f"{shard.stem}.tar", f"{shard.stem}.npy"
        try:
            places = _read_cached(self._cache.open(index, None, partial(_check_places, shard), is_ahead), shard.size)
        except ValueError as error:
            if isinstance(error, ShardError):
                raise
            self._cache.drop(index)
            raise ShardError(
                f"{self.address}/{index}: its copy in {self.settings.root} is damaged ({error})"
            ) from error
        found = self._cache.open(tar, shard.num_bytes, partial(_check_tar, shard), is_ahead)
        return OpenShard(f"{self.address}/{tar}", found, places, is_cached=True)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _stamp(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


def _check_tar(shard: IndexedShard, path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        validate_shard(descriptor, shard.num_bytes, shard.crc32)
    finally:
        os.close(descriptor)


def _check_places(shard: IndexedShard, path: Path) -> None:
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
