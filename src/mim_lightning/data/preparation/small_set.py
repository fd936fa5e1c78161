"""A small shard set, written at once and in this process.

Records come in, a folder that a ShardSet reads goes out; tests and notebooks call it. Whoever has more than that, or
wants to be interrupted, writes through `processes`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from mim_lightning.data.shards.set_writer import finish_set, place_shard, remove_receipts
from mim_lightning.data.shards.writer import Record, shard_sizes, write_shard
from mim_lightning.io.store import Store


def write_shard_set(folder: Path, records: Iterable[Record], num_records: int, samples_per_shard: int) -> None:
    """Write `num_records` records into `folder`; the shards are of equal size, give or take one sample.

    Raises:
        ValueError: fewer or more records come than were announced.
    """
    folder.mkdir(parents=True)
    store, iterator, first = Store(folder), iter(records), 0
    sizes = shard_sizes(num_records, samples_per_shard)
    for shard_idx, size in enumerate(sizes):
        with store.scratch() as scratch:
            facts = write_shard(scratch / "shard", islice(iterator, size), first)
            if facts.size != size:
                break
            place_shard(store, "", shard_idx, scratch / "shard", facts)
        first += size
    if first != num_records or next(iterator, None) is not None:
        raise ValueError(f"{folder}: {num_records} records announced, another number came")
    finish_set(store, "", len(sizes))
    remove_receipts(store)
