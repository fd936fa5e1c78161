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
    device: torch.device,
    embed: Callable[[Batch], Embeddings],
    on_progress: Callable[[int], None],
) -> EmbeddingTable:
    """Return the vectors of towers, on the CPU, and the ids of each query once; several processes all call it.

    Args:
        embed: embeds a batch on the device.
        on_progress: called with the batches done.
    """
    collector = EmbeddingCollector(towers, IDS, device="cpu")
    for idx, given in enumerate(batches):
        batch = given.to(device)
        found = embed(batch)
        collector.update(batch.query_keys, found.vectors, found.present, columns_of(batch), valid=~batch.is_padding)
        on_progress(idx + 1)
    return collector.take_table()
