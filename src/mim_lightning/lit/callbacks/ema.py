"""Exponential moving average of the weights: validation measures it, and checkpoints hold it beside the live weights.

A checkpoint's `state_dict` has the averaged weights, so evaluation, export and `init_from` use them; training resumes
from `current_model_state`, the live ones.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mim_lightning.lit.fully_sharded import FullySharded
from mim_lightning.model.sharding import is_part, local, release_weights


class EMA(EMAWeightAveraging):
    """Lightning's EMA callback, updated by fused kernels and without waiting for the device.

    Before the first update (`update_starting_at_step`) the average is the live model; Lightning's is the initial one.

    Floating-point buffers, such as the statistics of batch normalization, are averaged like weights; integers, such as
    position indices, are copied: their average is rounded down, and 11 becomes 10 at a decay of 0.9999.

    Args:
        decay: of the average at each update; 0.999 averages about the last 1000 updates.
        use_buffers: False copies all buffers of the live model.
        options: of Lightning's callback: `device`, `update_every_n_steps`, `update_starting_at_step` ...
    """

    def __init__(self, decay: float = 0.999, use_buffers: bool = True, **options: Any) -> None:
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay={decay}: give a number from 0 to below 1, such as 0.999")
        super().__init__(decay=float(decay), use_buffers=use_buffers, **options)
        self.decay = float(decay)
        self._kwargs = {**self._kwargs, "avg_fn": None, "multi_avg_fn": self._average}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and str(trainer.precision) == "bf16-true":
            raise ValueError(
                "trainer.precision=bf16-true: bfloat16 rounds the steps of an average away; give bf16-mixed, or "
                "callbacks.ema=null"
            )
        if stage == "fit" and isinstance(trainer.strategy, FullySharded):  # which shards it afterwards
            # on the CPU: a whole copy may not fit where the parts do
            self._average_model = AveragedModel(
                pl_module, torch.device("cpu"), use_buffers=self._use_buffers, **self._kwargs
            )
        else:
            super().setup(trainer, pl_module, stage)
        if stage == "fit":
            assert self._average_model is not None
            # the number of updates, which is read before each
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()
            trainer.precision_plugin.convert_module(self._average_model.module)  # as the live weights are to be

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._shard_average(pl_module)
        super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shard_average(pl_module)

    def _shard_average(self, pl_module: LightningModule) -> None:
        """Keep this process's part of the average alone, where the model has been sharded since it was copied."""
        if self._average_model is None:
            return
        averaged: Any = self._average_model.module
        parts: dict[int, nn.Parameter] = {}  # by id of the live one, which may have several names
        for name, parameter in pl_module.named_parameters(remove_duplicate=False):
            owner, _, leaf = name.rpartition(".")
            if is_part(parameter) and not is_part(averaged.get_parameter(name)):
                if id(parameter) not in parts:
                    parts[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
                setattr(averaged.get_submodule(owner), leaf, parts[id(parameter)])
        if parts:
            device = next(iter(parts.values())).device
            for tensor in chain(averaged.parameters(), averaged.buffers()):
                if not is_part(tensor):  # what every process keeps whole
                    tensor.data = tensor.data.to(device)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        release_weights(pl_module)  # they were gathered of the average
        super().on_validation_epoch_end(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follow(pl_module)
        super().on_train_end(trainer, pl_module)

    @torch.no_grad()
    def _follow(self, pl_module: LightningModule) -> None:
        if self._average_model is None or self._average_model.n_averaged:
            return
        averaged = self._average_model.module
        for ours, live in zip(
            chain(averaged.parameters(), averaged.buffers()),
            chain(pl_module.parameters(), pl_module.buffers()),
            strict=True,
        ):
            ours.copy_(live)

    @torch.no_grad()
    def _average(self, averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        averaged, current = [local(tensor) for tensor in averaged], [local(tensor) for tensor in current]
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - self.decay)
        else:
            torch._foreach_copy_(averaged, current)


def validate_averaging(callbacks: dict[str, Any]) -> None:
    """Check that checkpoints of a run that averages weights hold the average.

    Raises:
        ValueError: naming the callback that would write live weights.
    """
    averaging = [name for name, callback in callbacks.items() if isinstance(callback, WeightAveraging)]
    for name, callback in callbacks.items():
        if averaging and isinstance(callback, ModelCheckpoint) and callback.save_weights_only:
            raise ValueError(
                f"callbacks.{name}.save_weights_only=true: would hold the live weights instead of those of "
                f"callbacks.{averaging[0]}; give false"
            )


def free_averages(trainer: Trainer) -> None:
    """Free the averaged model after training.

    With it Lightning would load the live weights of a checkpoint that is evaluated.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback._average_model = None
