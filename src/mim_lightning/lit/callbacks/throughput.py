"""How fast training goes, and whether it waits for data or for the device.

Nothing comes in but Lightning's hooks; rows a second and the share of time spent waiting for the loader go out
to the loggers, once an epoch.
"""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from mim_lightning.types import Batch


class Throughput(Callback):
    """Logs `train/rows_per_second` (of all ranks) and `train/data_wait_share` (0 to 1, of rank 0's time)."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()  # a run resumed within an epoch has no epoch start

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def _restart(self) -> None:
        self.rows, self.waited = 0, 0.0
        self.started = self.last_end = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.waited += time.perf_counter() - self.last_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.rows += len(batch) * trainer.world_size
        self.last_end = time.perf_counter()
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            # here, not at the epoch's end: validation would count as training time
            seconds = max(self.last_end - self.started, 1e-9)
            log = {"train/rows_per_second": self.rows / seconds, "train/data_wait_share": self.waited / seconds}
            pl_module.log_dict(log, batch_size=1)
