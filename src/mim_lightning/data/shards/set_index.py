"""The index of a shard set, `index.json`: samples, bytes and checksum of each shard.

Stored as arrays: a set of 400 million samples has a few hundred thousand shards.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from mim_lightning.io.damaged_file import describe_error

FORMAT_VERSION = 2
READABLE = (1, 2)  # the first has no bytes, no checksums, and no columns except the keys


@dataclass(frozen=True)
class IndexedShard:
    """The entry of a shard in the index."""

    idx: int
    size: int  # samples
    num_bytes: int | None = None  # of the tar file
    crc32: int | None = None  # of the tar file

    @property
    def stem(self) -> str:
        return f"{self.idx:06d}"


@dataclass(frozen=True)
class SetIndex:
    sizes: list[int]  # samples of each shard
    max_relevant: int  # products of one sample, asked for or shown
    num_bytes: np.ndarray | None = None  # (shards,) int64
    crc32: np.ndarray | None = None  # (shards,) int64

    @property
    def starts(self) -> np.ndarray:
        """The number of the first sample of each shard, then the number of samples: (shards + 1,)."""
        return np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])

    def shard(self, idx: int) -> IndexedShard:
        known = (None if values is None else int(values[idx]) for values in (self.num_bytes, self.crc32))
        return IndexedShard(idx, self.sizes[idx], *known)


def parse_index(content: bytes) -> SetIndex:
    """Read the content of an index.json.

    Raises:
        ValueError: it is damaged, or of an unknown format.
    """
    try:
        index = json.loads(content)
        version, max_relevant = index["version"], int(index["max_relevant"])
        sizes = [int(size) for size in index["sizes"]]
        if version not in READABLE:
            raise UnknownFormatError(f"shard format {version}, this code reads {' and '.join(map(str, READABLE))}")
        if version == 1:
            return SetIndex(sizes, max_relevant)
        num_bytes, crc32 = (np.array(index[name], dtype=np.int64) for name in ("bytes", "crc32"))
        if not num_bytes.shape == crc32.shape == (len(sizes),):
            raise ValueError("sizes, bytes and crc32 differ in length")
    except UnknownFormatError:
        raise
    except Exception as error:  # parsing a damaged file can raise anything
        raise ValueError(f"damaged ({describe_error(error)})") from error
    return SetIndex(sizes, max_relevant, num_bytes, crc32)


class UnknownFormatError(ValueError):
    """The set was written by another version of this code."""
