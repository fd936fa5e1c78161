"""Open shards: a tar file and its byte index, read at offsets; the few hundred used last stay open."""

from __future__ import annotations

import io
import math
import os
import re
import tarfile
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import BinaryIO

import numpy as np

from mim_lightning.data.shards.cache import TOUCH_EVERY, touch
from mim_lightning.fields import IMAGE_FIELDS

MEMBERS = ("json", *IMAGE_FIELDS)
MAX_OPEN = 256  # a few dozen shards are read at a time; a process may have about 1000 open files
NUM_COMPARED = 8  # samples of a shard whose members are compared with the byte index when it is opened
BLOCK = 1 << 20  # bytes read at once for a checksum
# NumPy's own reader parses it as Python, which fails in two threads at once on Python 3.11 (python/cpython#106905)
_ARRAY_HEADER = re.compile(
    rb"\{'descr': '([<>|][biuf]\d)', 'fortran_order': (True|False), 'shape': \(([0-9, ]+)\), \} *\n"
)
_MAX_HEADER = 10_000  # bytes, as NumPy's


class OpenShard:
    """One tar file and its byte index; reads by offset, so a forked worker may share it.

    Args:
        name: path or URL of the tar file, for errors.
        descriptor: of the tar file; closed with the last reference to the shard.
        places: (S, members, 2) int64, byte offset and size of each member of each sample, 0 and 0 if it is absent.
        is_cached: reading marks its file in the cache as used.
    """

    def __init__(self, name: str, descriptor: int, places: np.ndarray, is_cached: bool = False) -> None:
        self.name, self.descriptor, self.places = name, descriptor, places
        self._touched = time.monotonic() if is_cached else float("inf")

    def __del__(self) -> None:
        os.close(self.descriptor)

    @property
    def is_gone(self) -> bool:
        """Whether its file was removed: while it is open it can be read, and takes disk space."""
        return os.fstat(self.descriptor).st_nlink == 0

    def members(self, row: int, names: Sequence[str]) -> dict[str, bytes]:
        """Return the requested members that a sample has, by one read: they are adjacent.

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
        except (OSError, OverflowError, MemoryError) as error:  # a failing disk or share; a damaged index
            raise ValueError(str(error) or "the byte index names more bytes than fit into memory") from error
        if len(data) < stop - first:
            raise ValueError("the file ends inside the sample")
        return split_members(data, first, places)


def split_members(data: bytes, first: int, places: Mapping[str, Sequence[int]]) -> dict[str, bytes]:
    """Return the members in a part of a tar file that starts at `first`, by their offsets and sizes."""
    return {name: data[offset - first : offset - first + size] for name, (offset, size) in places.items()}


def validate_opened(descriptor: int, places: np.ndarray, num_bytes: int | None) -> None:
    """Compare a tar file with its size and, for a few samples, with its byte index: a cheap check at opening.

    Raises:
        ValueError: they do not match.
    """
    size = os.fstat(descriptor).st_size
    if num_bytes is not None and size != num_bytes:
        raise ValueError(f"it has {size:,} bytes, the index says {num_bytes:,}")
    for row in np.unique(np.linspace(0, len(places) - 1, min(len(places), NUM_COMPARED)).astype(int)).tolist():
        for name, (offset, num_wanted) in zip(MEMBERS, places[row].tolist(), strict=True):
            if num_wanted:
                _validate_member(descriptor, name, offset, num_wanted)


def _validate_member(descriptor: int, name: str, offset: int, size: int) -> None:
    try:
        header = os.pread(descriptor, tarfile.BLOCKSIZE, max(0, offset - tarfile.BLOCKSIZE))
    except (OSError, OverflowError) as error:
        raise ValueError(f"no member starts where the byte index says ({error})") from error
    validate_header(header, name, offset, size)


def validate_header(header: bytes, name: str, offset: int, size: int) -> None:
    """Compare the header of a member, of a tar file at `offset`, with what the byte index says of it.

    Raises:
        ValueError: they differ.
    """
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise ValueError(f"no member starts where the byte index says ({error})") from error
    if member.size != size or not member.name.endswith(f".{name}"):
        raise ValueError(
            f"the byte index is of another shard: at {offset:,} is {member.name!r} of {member.size:,} bytes"
        )


def validate_shard(descriptor: int, num_bytes: int | None, crc32: int | None) -> None:
    """Compare a whole tar file with the size and checksum in the index of the set, if it has them.

    Raises:
        ValueError: they differ.
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


def places_start(size: int) -> int:
    """Return the bytes before the first place in the byte index of a shard of `size` samples."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i8", "fortran_order": False, "shape": (size, len(MEMBERS), 2)}
    )
    return header.tell()


def places_size(size: int) -> int:
    """Return the bytes of the byte index of a shard of `size` samples."""
    return places_start(size) + size * len(MEMBERS) * 2 * 8


def read_array_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an array file (.npy) of numbers, up to the first: shape, whether columns come first, type.

    Raises:
        ValueError: it is not such a file.
    """
    version = np.lib.format.read_magic(file)
    num_bytes = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    found = _ARRAY_HEADER.fullmatch(file.read(min(num_bytes, _MAX_HEADER)))
    if found is None:
        raise ValueError("no array of numbers")
    kind, is_fortran, shape = (part.decode() for part in found.groups())
    return tuple(int(side) for side in shape.split(",") if side.strip()), is_fortran == "True", np.dtype(kind)


def read_places(file: BinaryIO, size: int) -> np.ndarray:
    """Read the byte index of a shard of `size` samples, (size, members, 2) int64, and close the file.

    Raises:
        ValueError: it is not such an index.
    """
    wanted = (size, len(MEMBERS), 2)
    with file:
        try:
            shape, is_fortran, kind = read_array_header(file)
            if is_fortran or kind != np.dtype("<i8"):
                raise ValueError(f"{kind} in {'columns' if is_fortran else 'rows'}, not int64 in rows")
            if shape != wanted:  # checked before an array of that shape is allocated
                raise ValueError(f"not {size} samples")
            return np.frombuffer(file.read(math.prod(wanted) * kind.itemsize), kind).reshape(wanted)
        except EOFError as error:
            raise ValueError(str(error)) from error


class OpenShards:
    """The shards used last, by a key that differs if a set was written again."""

    def __init__(self, max_open: int = MAX_OPEN) -> None:
        self.max_open = max_open
        self._shards: OrderedDict[Hashable, OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):  # another thread may have the lock at that moment
            os.register_at_fork(after_in_child=self._forget)

    def get(self, key: Hashable, make: Callable[[], OpenShard]) -> OpenShard:
        with self._lock:
            shard = self._shards.get(key)
            if shard is not None:
                self._shards.move_to_end(key)
                return shard
        shard = make()  # without the lock: it may wait for a store
        with self._lock:
            self._close_removed()
            self._shards[key] = shard
            while len(self._shards) > self.max_open:
                self._shards.popitem(last=False)
        return shard

    def drop(self, key: Hashable) -> None:
        """Close a shard that is damaged."""
        with self._lock:
            self._shards.pop(key, None)

    def _close_removed(self) -> None:
        """Close files that were removed from the cache: while open, they still take disk space."""
        for key in [key for key, shard in self._shards.items() if shard.is_gone]:
            del self._shards[key]

    def _forget(self) -> None:
        self._shards, self._lock = OrderedDict(), threading.Lock()
