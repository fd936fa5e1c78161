"""Callback that counts the corrupt samples of an epoch."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from mim_lightning.data.loading.loader import StreamLoader
from mim_lightning.lit.console import warn
from mim_lightning.types import Batch


class CorruptSamples(Callback):
    """Logs `train/skipped_samples`, the corrupt samples that an epoch skipped, and stops beyond the maximum.

    It logs nothing where a corrupt sample raises an error.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        loader = trainer.train_dataloader
        if not isinstance(loader, StreamLoader) or not loader.skipped.policy.skips:
            return
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            own = torch.tensor(float(loader.skipped.num_skipped), device=pl_module.device)
            total = int(trainer.strategy.reduce(own, reduce_op="sum"))
            pl_module.log("train/skipped_samples", float(total), on_step=False, on_epoch=True, batch_size=1)
            if total:
                warn(f"epoch {loader.epoch}: skipped {total}/{loader.skipped.num_samples} samples")
            loader.skipped.validate_limit(total)
