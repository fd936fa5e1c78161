"""Callbacks that watch a training run: its loss, its corrupt samples, its speed."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from mim_lightning.data.loading.loader import StreamLoader
from mim_lightning.lit.console import warn
from mim_lightning.types import Batch


class TerminateOnNaN(Callback):
    """Ends a run whose training loss is NaN or infinite, on all ranks at the same step.

    The losses are read every `trainer.log_every_n_steps` batches, and at the end of an epoch, before validation.
    """

    def __init__(self) -> None:
        self.recent: list[torch.Tensor] = []  # on the device: reading each one would wait for the step
        self.last_finite: str | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.recent.append(outputs["loss"].detach().float())
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and (batch_idx + 1) % every:
            return
        # the mean is not finite if it is not on one rank, so all ranks leave together
        losses = trainer.strategy.reduce(torch.stack(self.recent), reduce_op="mean").tolist()
        self.recent.clear()
        for step, loss in enumerate(losses, start=trainer.fit_loop.total_batch_idx + 2 - len(losses)):
            if not math.isfinite(loss):
                before = f"the last finite loss was {self.last_finite}" if self.last_finite else "no loss was finite"
                raise ValueError(
                    f"training diverged: the loss is {loss} at step {step}; {before}; a smaller optim.lr may help"
                )
            self.last_finite = f"{loss:.4g} at step {step}"


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


class Throughput(Callback):
    """Logs the speed of each epoch.

    `train/rows_per_second` is that of all ranks; `train/data_wait_fraction` is the fraction of rank 0's time, 0 to 1,
    in which it waited for the loader.
    """

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
            # here, not at the epoch's end, which comes after validation
            seconds = max(self.last_end - self.started, 1e-9)
            log = {"train/rows_per_second": self.rows / seconds, "train/data_wait_fraction": self.waited / seconds}
            pl_module.log_dict(log, batch_size=1)
