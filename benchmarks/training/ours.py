"""Training by this project, and by a bare loop over its modules and batches."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn

from benchmarks.training.pace import Pace
from benchmarks.training.setup import CLIP_NORM, Setup
from mim_lightning.config import build_objective, build_partial
from mim_lightning.launch import set_up_process
from mim_lightning.lit.optim import parameter_groups
from mim_lightning.train import train
from mim_lightning.types import Batch


class PaceCallback(Callback):
    """Begins and ends segments, which are epochs."""

    pace: ClassVar[Pace]
    rows = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pace.watch(pl_module.matcher)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pace.begin()
        self.rows = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.rows += len(batch) if isinstance(batch, Batch) else len(batch["query_image"])
        if batch_idx + 1 == trainer.num_training_batches:  # before a validation, which the others do without
            self.pace.end(self.rows)


def train_ours(setup: Setup, pace: Pace, *more: str) -> None:
    """Train by the entry point's own function, with its default callbacks and logger."""
    PaceCallback.pace = pace
    train(setup.config(f"+callbacks.pace._target_={__name__}.PaceCallback", *more))


def train_ours_cached(setup: Setup, pace: Pace) -> None:
    train_ours(setup, pace, f"step.micro_batch_size={setup.micro_batch_size}")


def train_bare(setup: Setup, pace: Pace) -> None:
    """Train our modules on our batches in a plain loop, under the same settings of the process."""
    config = setup.config()
    set_up_process(config, config["trainer"]["accelerator"])
    matcher, datamodule = setup.build(config)
    objective = build_objective(config, matcher.names).to(setup.device)
    matcher.to(setup.device).train()
    rates = {key: config["optim"][key] for key in ("lr", "weight_decay", "lr_scales", "layer_decay")}
    make = build_partial(config["optim"]["optimizer"], "optim.optimizer")
    optimizer = make(parameter_groups(matcher, objective, **rates))
    schedule = build_partial(config["schedule"], "schedule")(optimizer, setup.num_steps)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    loader = datamodule.train_dataloader()
    pace.watch(matcher)
    while True:
        pace.begin()
        rows = 0
        for _, batch in zip(range(setup.batches), loader, strict=False):
            batch = batch.to(setup.device)
            with torch.autocast(setup.device, torch.bfloat16, enabled=setup.device == "cuda"):
                loss = objective(matcher(batch), batch).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, CLIP_NORM)
            optimizer.step()
            schedule.step()
            rows += len(batch)
        pace.end(rows)
