"""Scalars of training steps: their means over ranks, in one collective, where they are read.

Lightning's `sync_dist` would put a barrier and a reduction before every scalar of every step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning import Trainer
from torch import Tensor

from mim_lightning.losses.gather import gather_rows

LOSS, RUNNING_LOSS = "train/loss", "train/running_loss"


class StepMeans:
    """Sums the loss of an epoch on the device, and averages the scalars of a step over ranks."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget the losses of the last epoch."""
        self._loss_sum: Tensor | float = 0.0
        self._num_rows = 0

    def add(self, loss: Tensor, num_rows: int) -> None:
        """Add the loss of a batch, without waiting for it."""
        self._loss_sum = self._loss_sum + loss.detach() * num_rows
        self._num_rows += num_rows

    @property
    def running_loss(self) -> Tensor:
        """The mean loss of the epoch's rows so far, on this rank."""
        assert isinstance(self._loss_sum, Tensor)
        return self._loss_sum / self._num_rows

    def average(self, scalars: Mapping[str, Tensor], world_size: int) -> dict[str, Tensor]:
        """Return the means over ranks of a step's scalars, and the mean loss of the epoch's rows so far.

        Every rank calls it, with the same names. The means are on the CPU: Lightning reads those of the progress bar
        after every step, and would wait for the device each time.
        """
        named = {**scalars, RUNNING_LOSS: self.running_loss}
        if is_free(named[RUNNING_LOSS].device, world_size):
            return named
        is_double = any(value.dtype == torch.float64 for value in named.values())
        values = torch.stack([value.to(torch.float64 if is_double else torch.float32) for value in named.values()])
        return dict(zip(named, gather_rows(values[None]).mean(0).cpu(), strict=True))


def is_written(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether Lightning writes the values of this batch: the last one of a logged optimizer step."""
    is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    is_step = is_last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    return is_step and trainer._logger_connector.should_update_logs


def is_free(device: torch.device, world_size: int) -> bool:
    """Return whether the scalars of a step can be read without waiting for a device or another rank."""
    return world_size == 1 and device.type == "cpu"
