"""Shards that are open: a tar file and its byte index, read at offsets; the few hundred used last stay open.

File descriptors come in from `files`, members of samples go out.
"""

from __future__ import annotations

import os
import tarfile
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import BinaryIO

import numpy as np

from mim_lightning.data.shards.cache import TOUCH_EVERY, touch
from mim_lightning.fields import IMAGE_FIELDS

MEMBERS = ("json", *IMAGE_FIELDS)
MAX_OPEN = 256  # a few dozen shards are read from at a time; a process may hold about 1000 files
NUM_COMPARED = 8  # samples of a shard whose members are compared with the byte index when it is opened
BLOCK = 1 << 20  # bytes read at once for a checksum


class OpenShard:
    """One tar file and its byte index; reads by offset, so a forked worker may share it.

    Args:
        name: where the tar file stands, for errors.
        descriptor: of the tar file; closed when nobody uses the shard any more.
        places: (S, members, 2) int64, byte offset and size of each member of each sample, 0 and 0 where it is absent.
        is_cached: marks its file as used, now and then.
    """

    def __init__(self, name: str, descriptor: int, places: np.ndarray, is_cached: bool = False) -> None:
        self.name, self.descriptor, self.places = name, descriptor, places
        self._touched = time.monotonic() if is_cached else float("inf")

    def __del__(self) -> None:
        os.close(self.descriptor)

    @property
    def is_gone(self) -> bool:
        """Has its file been removed? It is readable as long as it is open, and takes disk as long."""
        return os.fstat(self.descriptor).st_nlink == 0

    def members(self, row: int, names: Sequence[str]) -> dict[str, bytes]:
        """Return those members that a sample has, by one read: they lie side by side.

        Raises:
            ValueError: the file is too short, or cannot be read.
        """
        if time.monotonic() - self._touched > TOUCH_EVERY:
            self._touched = time.monotonic()
            touch(self.descriptor)
        stored = zip(MEMBERS, self.places[row].tolist(), strict=True)
        places = {name: place for name, place in stored if place[1] and name in names}
        first = min(offset for offset, _ in places.values())
        stop = max(offset + size for offset, size in places.values())
        try:
            data = os.pread(self.descriptor, stop - first, first)
        except (OSError, OverflowError) as error:  # a disk or share that fails; an index gone wild
            raise ValueError(str(error)) from error
        if len(data) < stop - first:
            raise ValueError("the file ends inside the sample")
        return {name: data[offset - first : offset - first + size] for name, (offset, size) in places.items()}


def validate_opened(descriptor: int, places: np.ndarray, num_bytes: int | None) -> None:
    """Compare a tar file with its byte index and with its size, cheaply, for whenever it is opened.

    Raises:
        ValueError: one of them is of another shard.
    """
    size = os.fstat(descriptor).st_size
    if num_bytes is not None and size != num_bytes:
        raise ValueError(f"it has {size:,} bytes, the index says {num_bytes:,}")
    for row in np.unique(np.linspace(0, len(places) - 1, min(len(places), NUM_COMPARED)).astype(int)).tolist():
        for name, (offset, num_wanted) in zip(MEMBERS, places[row].tolist(), strict=True):
            if num_wanted:
                _check_member(descriptor, name, offset, num_wanted)


def _check_member(descriptor: int, name: str, offset: int, size: int) -> None:
    try:
        header = os.pread(descriptor, tarfile.BLOCKSIZE, max(0, offset - tarfile.BLOCKSIZE))
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (OSError, OverflowError, tarfile.TarError) as error:
        raise ValueError(f"no member begins where the byte index says ({error})") from error
    if member.size != size or not member.name.endswith(f".{name}"):
        raise ValueError(
            f"the byte index is of another shard: at {offset:,} lies {member.name!r} of {member.size:,} bytes"
        )


def validate_shard(descriptor: int, num_bytes: int | None, crc32: int | None) -> None:
    """Compare a whole tar file with what the set's index says of it, where it says it.

    Raises:
        ValueError: it is another file.
    """
    size = os.fstat(descriptor).st_size
    if num_bytes is not None and size != num_bytes:
        raise ValueError(f"it has {size:,} bytes, the index says {num_bytes:,}")
    if crc32 is None:
        return
    found = offset = 0
    while block := os.pread(descriptor, BLOCK, offset):
        found, offset = zlib.crc32(block, found), offset + len(block)
    if found != crc32:
        raise ValueError(f"its checksum is {found:08x}, the index says {crc32:08x}")


def read_places(file: BinaryIO, size: int) -> np.ndarray:
    """Read the byte index of a shard of `size` samples, (size, members, 2) int64, and close the file.

    Raises:
        ValueError: it is no such index.
    """
    wanted = (size, len(MEMBERS), 2)
    with file:
        try:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("not written by this code")
            shape = np.lib.format.read_array_header_1_0(file)[0]
            if shape != wanted:  # looked at before an array of whatever shape it says is made
                raise ValueError(f"not {size} samples")
            file.seek(0)
            return np.load(file)
        except EOFError as error:
            raise ValueError(str(error)) from error


class OpenShards:
    """The shards used last, by a key that tells a set that was written anew from the old one."""

    def __init__(self, max_open: int = MAX_OPEN) -> None:
        self.max_open = max_open
        self._shards: OrderedDict[Hashable, OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):  # another thread may hold the lock at that moment
            os.register_at_fork(after_in_child=self._forget)

    def get(self, key: Hashable, make: Callable[[], OpenShard]) -> OpenShard:
        with self._lock:
            shard = self._shards.get(key)
            if shard is not None:
                self._shards.move_to_end(key)
                return shard
        shard = make()  # not under the lock: it may take as long as a store's patience
        with self._lock:
            self._close_removed()
            self._shards[key] = shard
            while len(self._shards) > self.max_open:
                self._shards.popitem(last=False)
        return shard

    def drop(self, key: Hashable) -> None:
        """Let go of a shard that turned out damaged."""
        with self._lock:
            self._shards.pop(key, None)

    def _close_removed(self) -> None:
        """Let go of files that were removed to make room: while they are open, they take disk all the same."""
        for key in [key for key, shard in self._shards.items() if shard.is_gone]:
            del self._shards[key]

    def _forget(self) -> None:
        self._shards, self._lock = OrderedDict(), threading.Lock()
