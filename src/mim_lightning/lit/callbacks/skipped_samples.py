"""What a training stream had to leave out, as a metric and a line an epoch.

The train loader's own count comes in, the sum over all ranks goes out to the loggers; beyond `data.max_bad` all
ranks stop together.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from mim_lightning.data.loading.loader import StreamLoader
from mim_lightning.types import Batch


class SkippedSamples(Callback):
    """Logs `train/skipped_samples`: samples of the epoch that could not be read; nothing where none may be skipped."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        loader = trainer.train_dataloader
        if not isinstance(loader, StreamLoader) or not loader.skipped.bad.are_skipped:
            return
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            own = torch.tensor(float(loader.skipped.num_skipped), device=pl_module.device)
            total = int(trainer.strategy.reduce(own, reduce_op="sum"))
            pl_module.log("train/skipped_samples", float(total), on_step=False, on_epoch=True, batch_size=1)
            if total:
                rank_zero_warn(f"epoch {loader.epoch}: {total} of {loader.skipped.num_samples} samples were skipped")
            loader.skipped.refuse_beyond_ceiling(total)
