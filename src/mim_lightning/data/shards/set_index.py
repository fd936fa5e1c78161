"""What `index.json` tells of a shard set: how many samples, bytes and which checksum each shard has.

The file's content comes in, numbers of shards and samples go out; `shard_set` asks. Held as arrays: a set of 400
million samples has a few hundred thousand shards.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from mim_lightning.io.damaged_file import describe_error

FORMAT_VERSION = 2
READABLE = (1, 2)  # the first tells neither bytes nor checksums, and has no columns but the keys


@dataclass(frozen=True)
class IndexedShard:
    """What is known of a shard before it is opened."""

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
        """The number of each shard's first sample, and the number of all, (shards + 1,)."""
        return np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])

    def shard(self, idx: int) -> IndexedShard:
        known = (None if values is None else int(values[idx]) for values in (self.num_bytes, self.crc32))
        return IndexedShard(idx, self.sizes[idx], *known)


def parse_index(content: bytes) -> SetIndex:
    """Read the content of an index.json.

    Raises:
        ValueError: it is damaged, or of a format that is not known here.
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
            raise ValueError("sizes, bytes and crc32 are not of as many shards")
    except UnknownFormatError:
        raise
    except Exception as error:  # whatever a text that is no index brings about
        raise ValueError(f"damaged ({describe_error(error)})") from error
    return SetIndex(sizes, max_relevant, num_bytes, crc32)


class UnknownFormatError(ValueError):
    """The set was written by another version of this code."""
