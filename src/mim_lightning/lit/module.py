"""The one LightningModule, however many towers: matcher, objective, optimiser, three short steps.

Built objects and plain values come in; the train and evaluate doors build it. It computes nothing itself: the
matcher embeds, the objective compares, `callbacks.retrieval_eval` ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mim_lightning.interruption import keep_ours
from mim_lightning.lit.console import describe_cut_texts, describe_training
from mim_lightning.lit.optim import began_with_listed_decayed, parameter_groups
from mim_lightning.losses.objective import Objective
from mim_lightning.model.checkpoint import SECTION, describe
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import Batch, Embeddings


class MatchModule(LightningModule):
    """Trains a matcher on an objective.

    Args:
        matcher: the towers; its state is what a checkpoint is for.
        objective: named pairs; None for evaluation only.
        optimizer: a torch optimiser's class or partial, called with the parameter groups.
        lr, weight_decay, lr_scales: see `parameter_groups`.
        schedule: called with optimiser and number of steps.
        config: the resolved run config, carried in the checkpoint.
    """

    def __init__(
        self,
        matcher: Matcher,
        objective: Objective | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        lr_scales: Mapping[str, float] | None = None,
        schedule: Callable[[Optimizer, int], LRScheduler] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.matcher, self.objective = matcher, objective
        self._optimizer, self._schedule = optimizer, schedule
        self._rates: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "lr_scales": lr_scales or {}}
        self._spares_listed = True
        self._config = config or {}
        self._seed = int(self._config.get("seed", 0))
        self._is_synchronised = False

    def configure_model(self) -> None:
        """Make batch statistics those of the global batch, before DDP wraps the module."""
        has_batch_norm = any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in self.modules())
        if self.trainer.world_size > 1 and has_batch_norm and not self._is_synchronised:
            self._is_synchronised = True
            if self.trainer.strategy.root_device.type == "cuda":
                for owner in self.matcher.towers:
                    self.matcher.tower(owner).encoder.synchronise_batch_norm()
            else:
                rank_zero_warn(
                    "batch normalisation is synchronised on GPUs only: here each process has its own statistics"
                )

    def on_train_start(self) -> None:
        keep_ours()

    def on_validation_start(self) -> None:
        keep_ours()

    def on_predict_start(self) -> None:
        keep_ours()

    def on_fit_start(self) -> None:
        assert self.objective is not None
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        rank_zero_info(describe_training(self.objective, datamodule))
        if self.trainer.is_global_zero:
            for line in describe_cut_texts(datamodule, self._config):
                rank_zero_info(line)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.objective is not None
        # dropout as a function of (seed, step, rank): Lightning restores no generators when it resumes
        torch.manual_seed(hash((self._seed, self.global_step, self.global_rank)) % 2**63)
        result = self.objective(self.matcher(batch), batch)
        # every rank holds its part of the global loss; their mean is the loss of the global batch
        log = partial(self.log, batch_size=len(batch), sync_dist=True)
        log("train/loss", result.loss.detach(), prog_bar=True)
        log("train/epoch_loss", result.loss.detach(), on_step=False, on_epoch=True)
        for name, value in result.per_pair.items():
            log(f"train/loss/{name}", value)
        for name, value in result.stats.items():
            log(f"train/{name}", value)
        return result.loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Embeddings]:
        return {"embeddings": self.matcher(batch)}

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Embeddings:
        return self.matcher(batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        assert self._optimizer is not None and self._schedule is not None and self.objective is not None
        optimizer = self._optimizer(
            parameter_groups(self.matcher, self.objective, **self._rates, spares_listed=self._spares_listed)
        )
        schedule = self._schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for state in checkpoint.get("optimizer_states", ()):
            if self.objective and began_with_listed_decayed(self.matcher, self.objective, state, **self._rates):
                self._spares_listed = False
                rank_zero_info("weight decay: as this run began, on class tokens, position embeddings and the like too")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        agree = self.trainer.strategy.reduce_boolean_decision  # all write, or none: batch statistics may differ
        refuse_not_finite(self, f"at step {self.trainer.global_step}", agree)
        if self.trainer.is_global_zero:  # the one that writes; the fingerprint reads all weights
            checkpoint[SECTION] = describe(self.matcher, self._config)


@torch.no_grad()
def refuse_not_finite(module: nn.Module, where: str, agree: Callable[[bool], bool] = bool) -> None:
    """Refuse weights that are no numbers: written, they would take the place of the last good ones.

    Args:
        where: in the training, for the message.
        agree: returns whether what is given holds in all processes, each of which calls it.

    Raises:
        ValueError: naming the first such tensor.
    """
    # a mask may hold infinity, but no NaN
    found = {name: weight.isfinite().all() for name, weight in module.named_parameters() if weight.is_floating_point()}
    found |= {name: ~buffer.isnan().any() for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    is_good = not found or bool(
        torch.stack([good.to(next(iter(found.values())).device) for good in found.values()]).all()
    )
    if agree(is_good):
        return
    name = "a tensor of another process" if is_good else next(f"'{name}'" for name, good in found.items() if not good)
    raise ValueError(
        f"training diverged: {name} is not finite {where}; the checkpoints before it are kept; "
        "a smaller optim.lr may help"
    )


def freeze_unused(matcher: Matcher, objective: Objective) -> tuple[str, ...]:
    """Freeze the towers that no pair reaches, and return their names; DDP would wait for their gradients."""
    reached = {part for side in objective.sides for part in matcher.fusions.get(side, (side,))}
    owners = {matcher.owner_of[name] for name in reached}
    unused = tuple(name for name in matcher.towers if name not in owners)
    for name in unused:
        matcher.tower(name).requires_grad_(False)
    return unused
