"""The shuffle windows of a run in words: how much is shuffled together, and what that takes of a machine."""

from __future__ import annotations

from collections.abc import Iterator

from mim_lightning.data.sampling.order import BatchOrder, StreamedOrder
from mim_lightning.data.shards.mixture_set import ConcatShardSet
from mim_lightning.data.shards.open_shards import MAX_OPEN
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.display.numbers import format_bytes, format_count


def describe_windows(order: BatchOrder, shards: ShardSet) -> Iterator[str]:
    """Yield a line for each set: shards and rows that are shuffled together, and the bytes that are read at random."""
    for name, passes in order.passes().items():
        own = shards.sets[name] if isinstance(shards, ConcatShardSet) else shards
        yield f"{name}: {_describe(passes, own)}" if name else _describe(passes, own)


def _describe(order: StreamedOrder, shards: ShardSet) -> str:
    num_shards = len(order.shard_sizes)
    in_window = min(order.window * order.num_streams, num_shards)
    num_rows = in_window * order.rows_by_shard.mean()
    text = (
        f"shuffled over {in_window} of {num_shards} shards at a time, {format_count(round(num_rows), 'row')} or "
        f"{num_rows / order.global_batch_size:.1f} batches"
    )
    num_bytes = shards.index.num_bytes
    if num_bytes is not None:
        where = f"data.cache.max_size={shards.cache.max_size}" if isinstance(shards.folder, str) else "memory"
        text += f": {format_bytes(round(in_window * float(num_bytes.mean())))} that should fit {where}"
    if in_window > MAX_OPEN:
        text += f"; a loader process keeps {MAX_OPEN} files open and opens others again and again"
    return text
