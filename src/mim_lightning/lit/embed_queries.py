"""Embedding of the query sides of rows, to mine their hard negatives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from mim_lightning.metrics import EmbeddingCollector, EmbeddingTable
from mim_lightning.metrics.directions import IDS, columns_of
from mim_lightning.types import Batch, Embeddings


@torch.no_grad()
def embed_queries(
    batches: Iterable[Batch],
    towers: Sequence[str],
    devices: tuple[torch.device, torch.device],
    embed: Callable[[Batch], Embeddings],
    on_progress: Callable[[int], None],
) -> EmbeddingTable:
    """Return the vectors of towers, and the ids, of each query once; several processes all call it.

    Args:
        devices: that embeds, and that keeps the vectors.
        embed: embeds a batch on the first.
        on_progress: called with the batches done.
    """
    collector = EmbeddingCollector(towers, IDS, device=devices[1])
    for idx, given in enumerate(batches):
        batch = given.to(devices[0])
        found = embed(batch)
        collector.update(batch.query_keys, found.vectors, found.present, columns_of(batch), valid=~batch.is_padding)
        on_progress(idx + 1)
    return collector.take_table()
