"""A run whose loss is no number any more ends at once, instead of training on nothing.

The training loss of every step comes in and is looked at every few; a ValueError of one line goes out, on all ranks
at the same step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from mim_lightning.types import Batch


class StopDiverged(Callback):
    """Looks at the training loss every `trainer.log_every_n_steps` batches, and before an epoch is validated."""

    def __init__(self) -> None:
        self.recent: list[torch.Tensor] = []  # on the device: reading one off it would wait for it
        self.last_finite: str | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.recent.append(outputs["loss"].detach().float())
        is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if not is_last and (batch_idx + 1) % every:
            return
        # the mean over ranks is no number if one rank's is none, so all of them leave together
        losses = trainer.strategy.reduce(torch.stack(self.recent), reduce_op="mean").tolist()
        self.recent.clear()
        for step, loss in enumerate(losses, start=trainer.fit_loop.total_batch_idx + 2 - len(losses)):
            if not math.isfinite(loss):
                before = f"the last finite one was {self.last_finite}" if self.last_finite else "none before was finite"
                raise ValueError(
                    f"training diverged: the loss is {loss} at step {step}; {before}; a smaller optim.lr may help"
                )
            self.last_finite = f"{loss:.4g} at step {step}"
