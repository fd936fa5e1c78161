"""The index of a shard set, `index.json`: samples, bytes and checksum of each shard.

Stored as arrays: a set of 400 million samples has a few hundred thousand shards.

A set that was changed has an index for each version, `index-000002.json`, which lists all shards written so far and the
samples that were removed; shards are never rewritten. Its `index.json` only says that the settings of the prepared data
name the newest: code that knows no versions refuses it, instead of reading samples that were removed.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mim_lightning.io.damaged_file import describe_error

INDEX_FILE = "index.json"
FORMAT_VERSION = 2  # of a set that was never changed
CHANGED_FORMAT = 3  # of later versions, and of the pointer in INDEX_FILE
READABLE = (1, 2, 3)  # the first has no bytes, no checksums, and no columns except the keys
FIRST_VERSION = 1
MAX_RELEVANT = 1 << 24  # products of one sample
VERSIONS = "versions"  # in the settings of prepared data: what each version after the first changed
POINTER = "changed"  # key in INDEX_FILE of a set with several versions: its name


@dataclass(frozen=True)
class IndexedShard:
    """The entry of a shard in the index."""

    idx: int  # names its files
    size: int  # samples in the file, removed ones too
    num_bytes: int | None = None  # of the tar file
    crc32: int | None = None  # of the tar file

    @property
    def stem(self) -> str:
        return f"{self.idx:06d}"


@dataclass(frozen=True)
class ColumnSegment:
    """The samples that a version added: their columns are in files of their own."""

    version: int
    size: int  # samples, removed ones too

    def column_file(self, name: str) -> str:
        return f"{name}.npy" if self.version == FIRST_VERSION else f"{name}-{self.version:06d}.npy"


@dataclass(frozen=True)
class SetIndex:
    """One version of a set.

    Rows are numbered through all shards that were ever written; samples are the rows that were not removed.
    """

    stored_sizes: list[int]  # rows of each shard file
    max_relevant: int  # targets or references of one sample
    num_bytes: np.ndarray | None = None  # (files,) int64
    crc32: np.ndarray | None = None  # (files,) int64
    segments: tuple[ColumnSegment, ...] = ()  # empty: one, of the first version
    removed: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # (R,) rows, ascending
    version: int = FIRST_VERSION
    first_digest: str = ""  # of the first version's index; "": this is the first

    @cached_property
    def row_starts(self) -> np.ndarray:
        """The first row of each shard file, then the number of rows: (files + 1,)."""
        return np.concatenate([[0], np.cumsum(self.stored_sizes, dtype=np.int64)])

    @cached_property
    def _live_sizes(self) -> np.ndarray:
        return np.array(self.stored_sizes, dtype=np.int64) - np.diff(np.searchsorted(self.removed, self.row_starts))

    @cached_property
    def file_idxs(self) -> list[int]:
        """The shard files with samples; a shard's number in the set is its position here."""
        if not len(self.removed):
            return list(range(len(self.stored_sizes)))
        return np.flatnonzero(self._live_sizes).tolist()

    @cached_property
    def sizes(self) -> list[int]:
        """The samples of each shard."""
        return self._live_sizes[self.file_idxs].tolist() if len(self.removed) else self.stored_sizes

    @property
    def starts(self) -> np.ndarray:
        """The number of the first sample of each shard, then the number of samples: (shards + 1,)."""
        return np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])

    @property
    def num_rows(self) -> int:
        return int(self.row_starts[-1])

    def shard(self, idx: int) -> IndexedShard:
        file_idx = self.file_idxs[idx]
        known = (None if values is None else int(values[file_idx]) for values in (self.num_bytes, self.crc32))
        return IndexedShard(file_idx, self.stored_sizes[file_idx], *known)

    def rows_in_shard(self, idx: int) -> np.ndarray | None:
        """Return which rows of a shard's file are samples, ascending; None: all."""
        start, stop = self.row_starts[self.file_idxs[idx] : self.file_idxs[idx] + 2].tolist()
        low, high = np.searchsorted(self.removed, [start, stop])
        if low == high:
            return None
        is_live = np.ones(stop - start, dtype=bool)
        is_live[self.removed[low:high] - start] = False
        return np.flatnonzero(is_live)

    @cached_property
    def is_sample(self) -> np.ndarray:
        """Which rows (rows,) are samples."""
        is_sample = np.ones(self.num_rows, dtype=bool)
        is_sample[self.removed] = False
        return is_sample

    def rows_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the row of each sample, given by number."""
        return np.flatnonzero(self.is_sample)[numbers] if len(self.removed) else np.asarray(numbers, dtype=np.int64)

    def column_segments(self) -> tuple[ColumnSegment, ...]:
        return self.segments or (ColumnSegment(FIRST_VERSION, self.num_rows),)

    def first_file(self, segment_idx: int) -> int:
        """Return the first shard file of a segment."""
        row = sum(segment.size for segment in self.column_segments()[:segment_idx])
        return int(np.searchsorted(self.row_starts, row))

    def to_json(self, members: tuple[str, ...]) -> dict[str, Any]:
        """Return the content of the index file of a later version."""
        assert self.num_bytes is not None
        assert self.crc32 is not None
        steps = np.diff(self.removed, prepend=0).astype("<i8")
        return {
            "version": CHANGED_FORMAT,
            "set_version": self.version,
            "first": self.first_digest,
            "members": members,
            "sizes": self.stored_sizes,
            "max_relevant": self.max_relevant,
            "bytes": self.num_bytes.tolist(),
            "crc32": self.crc32.tolist(),
            "segments": [[segment.version, segment.size] for segment in self.segments],
            # differences of the removed rows: neighbors and whole shards compress to almost nothing
            "removed": base64.b64encode(zlib.compress(steps.tobytes())).decode(),
        }


def index_file(version: int) -> str:
    """Return the name of the index of a version, once a set has several."""
    return f"index-{version:06d}.json"


@dataclass(frozen=True)
class Pointer:
    """The content of INDEX_FILE of a set with several versions: the settings of the prepared data name the newest."""

    set_name: str  # in the prepared data

    @property
    def settings(self) -> str:
        """Relative path from the set's folder."""
        return "../" * (1 + self.set_name.count("/")) + "settings.json"

    def to_json(self) -> bytes:
        return json.dumps({"version": CHANGED_FORMAT, POINTER: self.set_name}).encode()

    def newest(self, settings: bytes) -> int:
        """Return the set's version in the newest version of the data, from the content of their settings.

        Raises:
            ValueError: that version does not have the set.
        """
        versions = json.loads(settings).get(VERSIONS)
        if versions and self.set_name not in versions[-1]["sets"]:
            raise ValueError(f"{self.set_name}: is not in version {versions[-1]['version']} of the prepared data")
        return int(versions[-1]["sets"][self.set_name]) if versions else FIRST_VERSION


def parse_pointer(content: bytes) -> Pointer | None:
    """Return the pointer in INDEX_FILE; None where it is an index."""
    if len(content) > 1024:
        return None
    try:
        set_name = json.loads(content).get(POINTER)
    except (ValueError, AttributeError):
        return None
    return Pointer(set_name) if isinstance(set_name, str) else None


def parse_index(content: bytes) -> SetIndex:
    """Read the content of an index.json.

    Raises:
        ValueError: it is damaged, or of an unknown format.
    """
    try:
        index = json.loads(content)
        version = index["version"]
        if version not in READABLE:
            raise UnknownFormatError(f"shard format {version}, this code reads {', '.join(map(str, READABLE))}")
        sizes, (max_relevant,) = _counts(index["sizes"], "sizes"), _counts([index["max_relevant"]], "max_relevant")
        if max_relevant > MAX_RELEVANT or sum(sizes) >= 1 << 63:
            raise ValueError("max_relevant or sizes are too large for a set")
        if version == 1:
            return SetIndex(sizes, max_relevant)
        num_bytes, crc32 = (np.array(_counts(index[name], name), dtype=np.int64) for name in ("bytes", "crc32"))
        if not num_bytes.shape == crc32.shape == (len(sizes),):
            raise ValueError("sizes, bytes and crc32 differ in length")
        if version == FORMAT_VERSION:
            return SetIndex(sizes, max_relevant, num_bytes, crc32)
        segments = tuple(ColumnSegment(int(number), int(size)) for number, size in index["segments"])
        packed, num_bytes_removed = base64.b64decode(index["removed"], validate=True), 8 * sum(sizes)
        # no more than the set has rows: a few bytes may unpack to gigabytes
        steps = np.frombuffer(zlib.decompressobj().decompress(packed, num_bytes_removed + 8), dtype="<i8")
        removed = np.cumsum(steps, dtype=np.int64)
        if sum(segment.size for segment in segments) != sum(sizes):
            raise ValueError("segments and sizes differ")
        if len(removed) and not (removed[0] >= 0 and (np.diff(removed) > 0).all() and removed[-1] < sum(sizes)):
            raise ValueError("the removed rows are not rows of the set")
        return SetIndex(
            *(sizes, max_relevant, num_bytes, crc32, segments, removed),
            version=int(index["set_version"]),
            first_digest=str(index["first"]),
        )
    except UnknownFormatError:
        raise
    except Exception as error:  # parsing a damaged file can raise anything
        raise ValueError(f"damaged ({describe_error(error)})") from error


def _counts(values: Any, name: str) -> list[int]:
    """Return a list of whole numbers that fit into 64 bits, none negative."""
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 1 << 63 for value in values):
        raise ValueError(f"{name} must be whole numbers, none negative")
    return values


class UnknownFormatError(ValueError):
    """The set was written by another version of this code."""
