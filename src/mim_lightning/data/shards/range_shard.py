"""A shard at an address of which a few samples are read: each by two requests, without a download of the shard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mim_lightning.data.shards.open_shards import MEMBERS, places_start, split_members, validate_header
from mim_lightning.data.shards.set_index import IndexedShard
from mim_lightning.io.remote import download_range
from mim_lightning.io.retry import RetryPolicy

PLACE = len(MEMBERS) * 2 * 8  # bytes of the byte index for a sample
HEADER = 512  # bytes before a member of a tar file


class RangeShard:
    """Reads samples of a shard as `OpenShard` does.

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
