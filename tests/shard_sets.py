"""Small shard sets, written at once and in this process."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from mim_lightning.data.shards.set_writer import finish_set, place_shard, remove_markers
from mim_lightning.data.shards.shard_writer import Record, shard_sizes, write_shard
from mim_lightning.io.store import Store


def write_shard_set(folder: Path, records: Iterable[Record], num_records: int, samples_per_shard: int) -> None:
    """Write `num_records` records into shards of equal size, give or take one sample."""
    folder.mkdir(parents=True)
    store, iterator, first = Store(folder), iter(records), 0
    sizes = shard_sizes(num_records, samples_per_shard)
    for shard_idx, size in enumerate(sizes):
        with store.scratch() as scratch:
            facts = write_shard(scratch / "shard", islice(iterator, size), first)
            assert facts.size == size, "fewer records than num_records"
            place_shard(store, "", shard_idx, scratch / "shard", facts)
        first += size
    assert next(iterator, None) is None, "more records than num_records"
    finish_set(store, "", len(sizes))
    remove_markers(store)
