"""The files of a shard set at an address: downloaded into a cache, or read in parts where a few samples are needed."""

from __future__ import annotations

import hashlib
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

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
from mim_lightning.data.shards.files import ShardPlan, index_digest
from mim_lightning.data.shards.open_shards import (
    MEMBERS,
    OpenShard,
    places_size,
    places_start,
    read_array_header,
    read_places,
    split_members,
    validate_header,
    validate_opened,
    validate_shard,
)
from mim_lightning.data.shards.prefetcher import Download, Prefetcher
from mim_lightning.data.shards.set_index import (
    FIRST_VERSION,
    INDEX_FILE,
    IndexedShard,
    SetIndex,
    index_file,
    parse_index,
    parse_pointer,
)
from mim_lightning.io.remote import download_json, download_range
from mim_lightning.io.retry import RemoteError, RetryPolicy

PLACE = len(MEMBERS) * 2 * 8  # bytes of the byte index for a sample
HEADER = 512  # bytes before a member of a tar file

_PREFETCHER = Prefetcher()


class DamagedCopyError(ShardError):
    """The cached copy of a byte index is damaged, or does not match that of its shard."""


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
        self._digest = first = index_digest(content)
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
            return download_json(f"{folder}/{name.removeprefix('../' * num_up)}", self.settings.retry_policy)
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
            try:
                opened = self._open_valid(shard, verify)
            except DamagedCopyError:  # downloaded again: byte indexes, and shards of the first format, have no checksum
                opened = self._open_valid(shard, verify)
        except ShardError:
            self.validate_unchanged()
            raise
        if is_new:
            self.validate_unchanged(f"{self._stem(shard)}.tar", f"{self._stem(shard)}.npy")
        return opened

    def _open_valid(self, shard: IndexedShard, verify: bool) -> OpenShard:
        """Open a shard and compare it with its byte index; where they differ, both are dropped from the cache."""
        opened = self._open(shard)
        try:
            if verify:
                validate_shard(opened.descriptor, shard.num_bytes, shard.crc32)
            validate_opened(opened.descriptor, opened.places, shard.num_bytes)
        except (OSError, ValueError) as error:
            self.drop(shard)
            names = f"{self.address}/{shard.stem}.tar, or {self.address}/{shard.stem}.npy"
            raise DamagedCopyError(f"{names}: its copy in {self.settings.root} is damaged ({error})") from error
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
            if index_digest(content) == self._digest:
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
            raise DamagedCopyError(
                f"{self.address}/{shard.stem}.npy: its copy in {self.settings.root} is damaged ({error})"
            ) from error
        found = self._cache.open(tar, shard.num_bytes, partial(_validate_tar, shard), is_prefetch)
        return OpenShard(f"{self.address}/{shard.stem}.tar", found, places, is_cached=True)


class RangeShard:
    """A shard of which single samples are read, each by two requests: it has the `members` of `OpenShard`.

    Args:
        address: of the set.
    """

    def __init__(self, address: str, shard: IndexedShard, policy: RetryPolicy) -> None:
        self.name, self.shard, self.policy = f"{address}/{shard.stem}.tar", shard, policy
        self._places = f"{address}/{shard.stem}.npy"

    def members(self, row: int, names: Sequence[str]) -> dict[str, bytes]:
        """Return the requested members that a sample has.

        Raises:
            ValueError: the byte index is not that of the shard.
            RemoteError: they cannot be read, or the store sends no parts of files.
        """
        start = places_start(self.shard.size) + row * PLACE
        data = download_range(self._places, start, start + PLACE, self.policy)
        stored = zip(MEMBERS, np.frombuffer(data, "<i8").reshape(-1, 2).tolist(), strict=True)
        places = {name: (offset, size) for name, (offset, size) in stored if size and name in names}
        if not places or any(min(place) < 0 for place in places.values()):
            raise ValueError("the byte index has no such sample")
        first = min(offset for offset, _ in places.values()) - HEADER
        stop = max(offset + size for offset, size in places.values())
        if first < 0 or (self.shard.num_bytes is not None and stop > self.shard.num_bytes):
            raise ValueError("the byte index is of another shard")
        data = download_range(self.name, first, stop, self.policy)
        for name, (offset, size) in places.items():
            validate_header(data[offset - first - HEADER : offset - first], name, offset, size)
        return split_members(data, first, places)


def _validate_tar(shard: IndexedShard, path: Path, _: int) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        validate_shard(descriptor, shard.num_bytes, shard.crc32)
    finally:
        os.close(descriptor)


def _validate_places(shard: IndexedShard, path: Path, _: int) -> None:
    read_places(path.open("rb"), shard.size)


def _read_cached(descriptor: int, size: int) -> np.ndarray:
    with open(descriptor, "rb") as file:
        return read_places(file, size)


def _map_array(descriptor: int) -> np.ndarray:
    with open(descriptor, "rb") as file:
        shape, _, dtype = read_array_header(file)
        return np.memmap(file, dtype, "r", file.tell(), shape)
