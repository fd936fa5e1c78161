"""Embedding of a catalog, or of the queries of a split, shard by shard, by Lightning's `predict` on one device or many.

The vectors of each shard are passed on as soon as the shard is finished, so an interrupted pass loses only the shards
in progress.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from mim_lightning.data.images.crops import Crop
from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.loading.loader import SequentialLoader
from mim_lightning.data.loading.worker_processes import killed_workers_named
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.lit.trainer import keep_batches
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import Batch, Embeddings, side_of

# shard number, (n, D) float32 vectors, (n,) bool present, facts of each row
KeepShard = Callable[[int, Tensor, Tensor, Iterable[dict[str, Any]]], None]


def embed_catalog(
    trainer: Trainer,
    module: LightningModule,
    datamodule: MatchDataModule,
    gallery: str,
    shard_idxs: Sequence[int],
    keep: KeepShard,
    shards: ShardSet | None = None,
    crop: Crop | None = None,
) -> None:
    """Embed shards of a set; several processes divide the shards, and all end together.

    Args:
        trainer: without callbacks that write.
        gallery: tower or fusion whose vectors are computed; those of its towers, side by side, if it combines scores.
        shard_idxs: the same on every process.
        keep: called for each finished shard, on the process that embedded it.
        shards: the set; None: the catalog.
        crop: the part of each image that is embedded; None: all of it.
    """
    if not shard_idxs:
        return
    shards = datamodule.opened.catalog if shards is None else shards
    collector = _ShardCollector(shards, gallery, shard_idxs, keep)
    trainer.callbacks.append(collector)  # type: ignore[attr-defined]
    keep_batches(trainer)
    passed = _ShardPass(datamodule, shards, side_of(gallery), shard_idxs, crop)
    with killed_workers_named():
        trainer.predict(module, datamodule=passed, return_predictions=False)
    trainer.callbacks.remove(collector)  # type: ignore[attr-defined]


class _ShardPass(LightningDataModule):
    """Gives Lightning the shards of this rank, in the batches of one process."""

    def __init__(
        self, datamodule: MatchDataModule, shards: ShardSet, side: str, shard_idxs: Sequence[int], crop: Crop | None
    ) -> None:
        super().__init__()
        self.crop = crop
        self.whole, self.shards, self.side, self.shard_idxs = datamodule, shards, side, shard_idxs
        # with more processes than shards some have nothing to do
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def predict_dataloader(self) -> SequentialLoader:
        self.whole.trainer = self.trainer
        placement = self.whole.placement()
        rank, world_size = placement.pop("rank"), placement.pop("world_size")
        specs = {name: spec for name, spec in self.whole.specs.items() if side_of(name) == self.side}
        collate, batch_size = Collate(specs, self.shards.max_relevant, crop=self.crop), self.whole.eval_batch_size
        return SequentialLoader(self.shards, collate, self.shard_idxs[rank::world_size], batch_size, **placement)


class _ShardCollector(Callback):
    """Joins the batches of each shard, which arrive in stored order."""

    def __init__(self, shards: ShardSet, gallery: str, shard_idxs: Sequence[int], keep: KeepShard) -> None:
        self.ends = {shards.span(idx)[1] - 1: idx for idx in shard_idxs}  # last sample -> shard
        self.shards, self.gallery, self.keep = shards, gallery, keep
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
        matcher = pl_module.matcher
        assert isinstance(matcher, Matcher)
        fusion = matcher.fusions.get(self.gallery)
        if fusion is None or fusion.needs_one_vector:
            vectors_BE = outputs.vectors[self.gallery]
        else:
            vectors_BE = fusion.stack_parts(outputs.vectors, outputs.present)
        self.parts.append((vectors_BE.float().cpu(), outputs.present[self.gallery].cpu()))
        shard_idx = self.ends.get(int(batch.sample_nums[-1]))
        if shard_idx is not None:
            vectors_ND, present_N = (torch.cat(part) for part in zip(*self.parts, strict=True))
            self.parts.clear()
            facts = map(self.shards.read_facts, range(*self.shards.span(shard_idx)))
            self.keep(shard_idx, vectors_ND, present_N, facts)
