"""The LightningModule, for any number of towers: matcher, objective, optimizer, and the steps of Lightning.

The matcher embeds, the objective computes the loss, `callbacks.retrieval_eval` ranks; the module only connects them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mim_lightning.fields import PRODUCT
from mim_lightning.interruption import reinstall_signal_handlers
from mim_lightning.lit.console import warn
from mim_lightning.lit.fully_sharded import FullySharded
from mim_lightning.lit.optim import began_with_listed_decayed, parameter_groups
from mim_lightning.lit.run_description import describe_cut_texts, describe_limit, describe_training
from mim_lightning.lit.step_means import LOSS, RUNNING_LOSS, StepMeans, is_free, is_written
from mim_lightning.losses.gather import sum_over_ranks
from mim_lightning.losses.objective import Objective
from mim_lightning.model.activation_checkpointing import restore_statistics
from mim_lightning.model.checkpoint import SECTION, describe_checkpoint, state_of
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.sharding import is_sharded, local
from mim_lightning.types import Batch, Embeddings, side_of


@dataclass(frozen=True)
class StepSettings:
    """How a training step is computed.

    Attributes:
        micro_batch_size: inputs of a tower, on each process, whose activations are in memory at a time. The loss is of
            the whole batch, with all of its negatives; every input is encoded twice, see `model.gradient_cache`.
            None: all inputs, once.

    Raises:
        ValueError: a size below 1.
    """

    micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(f"step.micro_batch_size={self.micro_batch_size}: give a whole number above 0, or null")


class MatchModule(LightningModule):
    """Trains a matcher on an objective.

    Args:
        matcher: the towers and fusions.
        objective: named pairs; None for evaluation only.
        optimizer: class or partial of a torch optimizer, called with the parameter groups.
        lr, weight_decay, lr_scales, layer_decay: see `parameter_groups`.
        schedule: called with the optimizer and the number of steps.
        config: the resolved run config, stored in the checkpoint.
        step: how a step is computed.
    """

    def __init__(
        self,
        matcher: Matcher,
        objective: Objective | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        lr_scales: Mapping[str, float] | None = None,
        layer_decay: float | None = None,
        schedule: Callable[[Optimizer, int], LRScheduler] | None = None,
        config: Mapping[str, Any] | None = None,
        step: StepSettings | None = None,
    ) -> None:
        super().__init__()
        self.matcher, self.objective = matcher, objective
        self._optimizer, self._schedule = optimizer, schedule
        self._rates: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "lr_scales": lr_scales or {}}
        self._rates["layer_decay"] = layer_decay
        self._spares_listed = True
        self._config = config or {}
        self._seed = int(self._config.get("seed", 0))
        self._is_synchronized = False
        self._micro_batch_size = (step or StepSettings()).micro_batch_size
        self._step_means, self._is_logged = StepMeans(), False
        if objective is not None:
            parameter_groups(matcher, objective, **self._rates)  # a wrong value ends a run before its folder is there

    def configure_model(self) -> None:
        """Synchronize batch normalization over ranks, before DDP wraps the module or FSDP2 shards it.

        Not with micro-batches, whose number may differ between ranks.
        """
        if str(self.trainer.precision) == "64-true":  # before Lightning does, which may have restored a checkpoint then
            self.trainer.precision_plugin.convert_module(self)
        has_batch_norm = any(isinstance(part, _BatchNorm) for part in self.modules())
        is_split = self._micro_batch_size is not None
        if self.trainer.world_size > 1 and has_batch_norm and not is_split and not self._is_synchronized:
            self._is_synchronized = True
            if self.trainer.strategy.root_device.type == "cuda":
                for owner in self.matcher.towers:
                    self.matcher.tower(owner).encoder.synchronize_batch_norm()
            else:
                warn("batch normalization is synchronized on GPUs only: here each process has its own statistics")
        if isinstance(self.trainer.strategy, FullySharded):
            self.trainer.strategy.shard(self)

    def on_train_start(self) -> None:
        reinstall_signal_handlers()
        self._step_means.restart()  # a run resumed within an epoch has no epoch start

    def on_train_epoch_start(self) -> None:
        self._step_means.restart()

    def on_validation_start(self) -> None:
        reinstall_signal_handlers()

    def on_predict_start(self) -> None:
        reinstall_signal_handlers()

    def on_validation_epoch_start(self) -> None:
        if isinstance(self.trainer.strategy, FullySharded):  # after callbacks, which may have exchanged weights
            self.trainer.strategy.gather_weights()

    def on_validation_epoch_end(self) -> None:
        if isinstance(self.trainer.strategy, FullySharded):
            self.trainer.strategy.release_weights()

    def on_fit_start(self) -> None:
        assert self.objective is not None
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.trainer.is_global_zero:
            rank_zero_info(describe_training(self.objective, datamodule))
            for line in (*describe_limit(self.trainer, datamodule), *describe_cut_texts(datamodule, self._config)):
                rank_zero_info(line)
        self._describe_step(datamodule.batch_size)

    def _describe_step(self, batch_size: int) -> None:
        """Say what the settings of a step change besides memory.

        Raises:
            ValueError: micro-batches with a strategy that shards weights, or validation by the clock of each process.
        """
        num_batches, world_size = self.trainer.accumulate_grad_batches, self.trainer.world_size
        if world_size > 1 and getattr(self.trainer, "_val_check_time_interval", None) is not None:
            raise ValueError(
                "trainer.val_check_interval: is a time, at which each process would validate by its own clock and wait "
                "for the others; give steps"
            )
        if num_batches > 1:
            rank_zero_info(
                f"trainer.accumulate_grad_batches={num_batches} adds no negatives; data.batch_size="
                f"{num_batches * batch_size} step.micro_batch_size={max(1, batch_size // world_size)} does, in about "
                "the same memory"
            )
        if self._micro_batch_size is None:
            return
        key = f"step.micro_batch_size={self._micro_batch_size}"
        if not isinstance(self.trainer.strategy, (SingleDeviceStrategy, DDPStrategy, FullySharded)):
            raise ValueError(f"{key}: works on one device, and with trainer.strategy=ddp or trainer=fsdp")
        if any(isinstance(part, _BatchNorm) and part.training for part in self.matcher.modules()):
            warn(
                f"{key}: batch normalization has the statistics of each micro-batch, so the result depends on its size"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        assert self.objective is not None
        self._seed_noise(batch_idx)
        if isinstance(self.trainer.strategy, FullySharded):
            self.trainer.strategy.synchronize_statistics()
        result = self.objective(self.matcher(batch, self._micro_batch_size), batch)
        self.log(
            "train/epoch_loss",
            result.loss.detach(),
            on_step=False,
            on_epoch=True,
            batch_size=len(batch),
            sync_dist=True,  # at the end of the epoch
        )
        scalars = {LOSS: result.loss.detach()}
        scalars |= {f"train/loss/{name}": value for name, value in result.per_pair.items()}
        scalars |= {f"train/{name}": value for name, value in result.stats.items()}
        self._step_means.add(result.loss, len(batch))
        self._is_logged = self._reads_scalars(batch_idx)
        if self._is_logged:
            self._log_means(scalars)
        elif is_free(self.device, self.trainer.world_size) and self.trainer.progress_bar_callback is not None:
            self._show_running_loss(self._step_means.running_loss)
        return {"loss": result.loss, "scalars": scalars}

    def _seed_noise(self, batch_idx: int) -> None:
        """Seed what a batch draws: Lightning does not restore random generators when it resumes."""
        place: tuple[int, ...] = (self._seed, self.global_step, self.global_rank)
        if (num_batches := self.trainer.accumulate_grad_batches) > 1:
            place = (*place, batch_idx % num_batches)  # all batches of an optimizer step have the same global step
        seed = hash(place) % 2**63
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a call stack for each kind of device
        else:
            torch.manual_seed(seed)

    def _reads_scalars(self, batch_idx: int) -> bool:
        """Return whether somebody may read the scalars of a step: where they are written, and at the epoch's end.

        Lightning takes a third of a millisecond to log one, read or not.
        """
        is_last = self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        is_trial = bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]
        return is_last or is_trial or is_written(self.trainer, batch_idx)

    def _log_means(self, scalars: Mapping[str, Tensor]) -> None:
        # every rank has its part of the global loss; the mean over ranks is the loss of the global batch
        means = self._step_means.average(scalars, self.trainer.world_size)
        self._show_running_loss(means.pop(RUNNING_LOSS))
        self.log_dict(means)

    def _show_running_loss(self, value: Tensor) -> None:
        self.log(RUNNING_LOSS, value, prog_bar=True, logger=False)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if not self._is_logged and self._reads_scalars(batch_idx):
            # a callback has just stopped training, and Lightning is about to write a row
            self._current_fx_name = "training_step"  # the same entries: two of one name would hide each other
            self._log_means(outputs["scalars"])

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        with restore_statistics(self.matcher):
            super().backward(loss, *args, **kwargs)

    def on_after_backward(self) -> None:
        if isinstance(self.trainer.strategy, FullySharded):
            self.trainer.strategy.synchronize_gradients()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # one collective for all fusions, and none unless one of them keeps running means
        pending = {name: fusion.take_pending() for name, fusion in self.matcher.fusions.items()}
        sums = {name: sums_PE for name, sums_PE in pending.items() if sums_PE is not None}
        if sums:
            sum_over_ranks([*sums.values()])
            for name, sums_PE in sums.items():
                self.matcher.fusions[name].update_means(sums_PE)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Embeddings]:
        return {"embeddings": self.matcher(batch)}

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Embeddings:
        return self.matcher(batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        assert self._optimizer is not None and self._schedule is not None and self.objective is not None
        groups = parameter_groups(self.matcher, self.objective, **self._rates, spares_listed=self._spares_listed)
        if is_sharded(self.matcher):
            assert isinstance(self.trainer.strategy, FullySharded)
            for group in groups:
                group["params"] = [self.trainer.strategy.replica(parameter) for parameter in group["params"]]
        optimizer = self._optimizer(groups)
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            # a fused optimizer could undo the loss scale itself; Lightning then clips no gradients, in bfloat16 neither
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        schedule = self._schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for state in checkpoint.get("optimizer_states", ()):
            if self.objective and began_with_listed_decayed(self.matcher, self.objective, state, **self._rates):
                self._spares_listed = False
                rank_zero_info("weight decay: as when this run started, on class tokens and positions too")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        agree = self.trainer.strategy.reduce_boolean_decision  # all ranks save, or none: batch statistics may differ
        # Lightning calls the callbacks before: what they put into the checkpoint, as EMA does, is what will be loaded
        validate_finite(self, f"at step {self.trainer.global_step}", agree, checkpoint["state_dict"])
        # only the rank that writes: the fingerprint reads all weights; of a sharded model all ranks bring them
        if self.trainer.is_global_zero or isinstance(self.trainer.strategy, FullySharded):
            checkpoint[SECTION] = describe_checkpoint(self.matcher, self._config, state_of(checkpoint))


@torch.no_grad()
def validate_finite(
    module: nn.Module,
    where: str,
    agree: Callable[[bool], bool] = bool,
    written: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Check that weights are finite, before they replace the last good checkpoint.

    Args:
        module: has the weights that training goes on with.
        where: step of the training, for the message.
        agree: returns whether its argument is true on all ranks; every rank calls it.
        written: the state dict of the checkpoint.

    Raises:
        ValueError: naming the first tensor that is not.
    """
    weights = {name: local(parameter) for name, parameter in module.named_parameters()}
    buffers = dict(module.named_buffers())
    live = {tensor.data_ptr() for tensor in (*weights.values(), *buffers.values())}
    written = {name: local(value) for name, value in written.items()}
    others = {name: value for name, value in written.items() if value.data_ptr() not in live}
    # a mask may contain infinity, but no NaN
    found = [
        (name, value.isfinite().all() if name in weights else ~value.isnan().any())
        for tensors in (weights, buffers, others)
        for name, value in tensors.items()
        if value.is_floating_point()
    ]
    is_good = not found or bool(torch.stack([good.to(found[0][1].device) for _, good in found]).all())
    if agree(is_good):
        return
    name = "a tensor of another process" if is_good else next(f"'{name}'" for name, good in found if not good)
    raise ValueError(
        f"training diverged: {name} is not finite {where}; earlier checkpoints are kept; a smaller optim.lr may help"
    )


def freeze_unused(matcher: Matcher, objective: Objective) -> tuple[str, ...]:
    """Freeze the towers and fusions of no pair, and return the towers' names: DDP would wait for their gradients."""
    reached = {part for side in objective.sides for part in matcher.fusions.get(side, (side,))}
    owners = {matcher.owner_of[name] for name in reached}
    unused = tuple(name for name in matcher.towers if name not in owners)
    for name in unused:
        matcher.tower(name).requires_grad_(False)
    for name, fusion in matcher.fusions.items():
        if name not in objective.sides:
            if any(True for _ in fusion.parameters()):
                other = "query_image" if side_of(name) == PRODUCT else "product_image"
                rank_zero_info(
                    f"model.fusions.{name}.kind={fusion.kind}: is in no pair, so its weights stay as given; add "
                    f"'+model.pairs.{other}_{name}={{left: {other}, right: {name}}}'"
                )
            fusion.requires_grad_(False)
    return unused
