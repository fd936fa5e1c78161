"""Callback that skips steps which are not finite, and ends a run that diverges."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.optim import Optimizer

from mim_lightning.lit.callbacks.preemption import is_last_step
from mim_lightning.lit.console import warn
from mim_lightning.lit.fully_sharded import FullySharded
from mim_lightning.model.sharding import is_part, local, whole
from mim_lightning.types import Batch


class TerminateOnNaN(Callback):
    """Skips steps whose loss or gradient is NaN or infinite, and ends a run that has too many in a row.

    A skipped step leaves the running statistics of batch normalization as they were before its first batch. All ranks
    do the same: they have the same gradients, or the same norm of all their parts. Losses are read every
    `trainer.log_every_n_steps` batches, and at the end of an epoch, before validation; no other step waits for the
    device. Where a GPU has an optimizer that is not fused, or gradients are sharded, a skipped step has gradients of
    zero, so that momentum still moves the weights.

    Args:
        max_skipped: steps in a row; 0 ends the run at the first, as do strategies of others that shard gradients.
    """

    def __init__(self, max_skipped: int = 10) -> None:
        if isinstance(max_skipped, bool) or not isinstance(max_skipped, int) or max_skipped < 0:
            raise ValueError(f"callbacks.terminate_on_nan.max_skipped={max_skipped}: give a whole number, 0 or more")
        self.max_skipped = max_skipped
        self.recent: list[torch.Tensor] = []  # on the device: reading each one would wait for the step
        self.last_finite: str | None = None
        self.num_skipped, self.num_in_a_row = 0, 0
        self._is_skipping = False
        self.statistics = _RunningStatistics(nn.Module())
        self._is_bad: torch.Tensor | None = None  # of the step whose batch has not ended

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        has_scaler = getattr(trainer.precision_plugin, "scaler", None) is not None  # which skips steps itself
        has_all_gradients = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | FullySharded)
        self._is_skipping = self.max_skipped > 0 and has_all_gradients and not has_scaler
        if not has_all_gradients:
            self.max_skipped = 0
        self.statistics = _RunningStatistics(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if self._is_skipping:
            self.statistics.keep()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self._is_skipping:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self._is_bad = ~whole(torch.nn.utils.get_total_norm(gradients)).isfinite()
        self.statistics.restore(self._is_bad)
        if self._is_bad.device.type == "cpu":
            if self._is_bad:
                optimizer.zero_grad(set_to_none=True)  # an optimizer leaves out what has no gradient
        elif all(group.get("fused") for group in optimizer.param_groups) and not is_part(gradients[0]):
            optimizer.found_inf = self._is_bad.float()  # type: ignore[attr-defined]  # read by fused kernels
        else:
            for gradient in gradients:
                local(gradient).masked_fill_(self._is_bad, 0.0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        loss = outputs["loss"].detach().float()
        self.recent.append(loss if self._is_bad is None else torch.where(self._is_bad, math.nan, loss))
        self._is_bad = None
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and (batch_idx + 1) % every:
            return
        # the mean is not finite if it is not on one rank, so all ranks leave together
        losses = trainer.strategy.reduce(torch.stack(self.recent), reduce_op="mean").tolist()
        self.recent.clear()
        former = self.num_skipped
        for step, value in enumerate(losses, start=trainer.fit_loop.total_batch_idx + 2 - len(losses)):
            if math.isfinite(value):
                self.num_in_a_row = 0
                self.last_finite = f"{value:.4g} at step {step}"
                continue
            self.num_skipped, self.num_in_a_row = self.num_skipped + 1, self.num_in_a_row + 1
            if self.num_in_a_row > self.max_skipped:
                before = f"the last finite loss was {self.last_finite}" if self.last_finite else "no loss was finite"
                raise ValueError(
                    f"training diverged: the loss is {value} at step {step}; {before}; a smaller optim.lr may help"
                )
        if self.num_skipped == trainer.fit_loop.total_batch_idx + 1 and is_last_step(trainer):
            raise ValueError(
                f"training diverged: no loss of the {self.num_skipped} steps was finite; a smaller optim.lr may help"
            )
        if self.num_skipped > former:
            warn(
                f"step {trainer.fit_loop.total_batch_idx + 1}: {self.num_skipped} steps skipped so far, whose loss or "
                f"gradient was not finite; the run ends after more than {self.max_skipped} in a row"
            )
        if self.num_skipped:
            pl_module.log("train/skipped_steps", float(self.num_skipped), batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        return {"num_skipped": self.num_skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_skipped = state_dict["num_skipped"]


class _RunningStatistics:
    """The running statistics of batch normalization, as they were before a step; nothing waits for the device."""

    def __init__(self, module: nn.Module) -> None:
        norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
        self.groups: dict[torch.dtype, list[torch.Tensor]] = {}
        for norm in norms:
            for buffer in norm.buffers(recurse=False):
                self.groups.setdefault(buffer.dtype, []).append(buffer)
        self.kept: dict[torch.dtype, torch.Tensor] = {}

    def keep(self) -> None:
        """Copy them, unless there are copies since the last step: it may have several batches."""
        if not self.kept:
            self.kept = {dtype: _flatten(buffers) for dtype, buffers in self.groups.items()}

    @torch.no_grad()
    def restore(self, is_bad: torch.Tensor) -> None:
        """Take the copies back if the step is bad, () bool on the device, and forget them."""
        kept_of, self.kept = self.kept, {}
        if is_bad.device.type == "cpu" and not is_bad:
            return
        for dtype, kept in kept_of.items():
            buffers = self.groups[dtype]
            values = torch.where(is_bad, kept, _flatten(buffers)).split([buffer.numel() for buffer in buffers])
            # one kernel for all of them
            torch._foreach_copy_(
                buffers, [value.view_as(buffer) for buffer, value in zip(buffers, values, strict=True)]
            )


def _flatten(buffers: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([buffer.flatten() for buffer in buffers])
