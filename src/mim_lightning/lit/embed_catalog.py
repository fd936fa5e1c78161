"""A catalogue through the product towers, shard by shard, by Lightning's predict on one device or many.

What makes a trainer, a module and a datamodule come in; every whole shard's vectors are handed on as soon as they are
there, so an interrupted pass loses at most the shards at work. The build_index door calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from mim_lightning.data.loading.loader import ShardPass
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.lit.console import ProgressBar
from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.lit.trainer import keep_batches
from mim_lightning.types import Batch, Embeddings

KeepShard = Callable[[int, Tensor, Tensor], None]  # shard number, (n, D) float32 vectors, (n,) bool present


def embed_catalog(
    make_trainer: Callable[..., Trainer],
    module: LightningModule,
    datamodule: MatchDataModule,
    gallery: str,
    shard_idxs: Sequence[int],
    keep: KeepShard,
) -> None:
    """Embed shards of the catalogue; with several processes each takes its share, and all end together.

    Args:
        make_trainer: called with callbacks and logger.
        gallery: the tower or fusion whose vectors are wanted.
        keep: called with every whole shard, on the process that embedded it.
    """
    if not shard_idxs:
        return
    collector = _ShardCollector(datamodule.opened.catalog, gallery, shard_idxs, keep)
    trainer = make_trainer(callbacks=[ProgressBar(), collector], logger=False)
    keep_batches(trainer)
    trainer.predict(module, datamodule=_CataloguePass(datamodule, shard_idxs), return_predictions=False)


class _CataloguePass(LightningDataModule):
    """Hands Lightning the share of the rank that asks."""

    def __init__(self, datamodule: MatchDataModule, shard_idxs: Sequence[int]) -> None:
        super().__init__()
        self.whole, self.shard_idxs = datamodule, shard_idxs
        # more processes than shards are left, and some have nothing to do
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def predict_dataloader(self) -> ShardPass:
        self.whole.trainer = self.trainer
        return self.whole.catalogue_pass(self.shard_idxs)


class _ShardCollector(Callback):
    """Joins the batches of each shard, which come in stored order."""

    def __init__(self, shards: ShardSet, gallery: str, shard_idxs: Sequence[int], keep: KeepShard) -> None:
        self.ends = {shards.span(idx)[1] - 1: idx for idx in shard_idxs}  # last sample -> shard
        self.gallery, self.keep = gallery, keep
        self.parts: list[tuple[Tensor, Tensor]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(outputs, Embeddings)
        self.parts.append((outputs.vectors[self.gallery].float().cpu(), outputs.present[self.gallery].cpu()))
        shard_idx = self.ends.get(int(batch.sample_nums[-1]))
        if shard_idx is not None:
            vectors_ND, present_N = (torch.cat(part) for part in zip(*self.parts, strict=True))
            self.parts.clear()
            self.keep(shard_idx, vectors_ND, present_N)
