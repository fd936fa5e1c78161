"""Callback that says in one sentence, once, when a training goes wrong in a way that a person would like to know early.

It reads what other callbacks and the module have logged, on logged steps and after validations only: it adds no
collective and waits for no device on other steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from mim_lightning.lit.callbacks.retrieval_eval import RetrievalEval
from mim_lightning.lit.console import warn
from mim_lightning.losses import info_nce
from mim_lightning.losses.tiled import function_of
from mim_lightning.types import Batch, Embeddings

MIN_SCALE, MAX_SCALE = 1.0, 1000.0  # beyond these a logit scale diverges


class TrainingAlarms(Callback):
    """Warns once of each: a metric worse than untrained, a flat loss, an extreme logit scale, slow data, a collapse.

    Args:
        monitor: the metric that should not fall below that of the initial model.
        flat_steps: steps after which the loss should be lower than that of guessing, log(1 + negatives); by a
            contrastive loss only. None switches this one off, as for the others.
        flat_tolerance: fraction by which it should be lower.
        scale_steps: steps that a logit scale may stay at its maximum.
        max_data_wait: fraction of an epoch's time that the loader may be waited for.
        max_cosine: of two validation rows in the same tower, on average; only if training has not lowered it.
    """

    def __init__(
        self,
        monitor: str,
        flat_steps: int | None = 300,
        flat_tolerance: float = 0.02,
        scale_steps: int | None = 300,
        max_data_wait: float | None = 0.5,
        max_cosine: float | None = 0.98,
    ) -> None:
        for name, value in (("max_data_wait", max_data_wait), ("max_cosine", max_cosine)):
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"callbacks.training_alarms.{name}={value}: give a fraction, 0 to 1, or null")
        self.monitor, self.flat_steps, self.flat_tolerance = str(monitor), flat_steps, flat_tolerance
        self.scale_steps, self.max_data_wait, self.max_cosine = scale_steps, max_data_wait, max_cosine
        self.given: set[str] = set()  # the alarms that were given
        self.since: dict[str, int] = {}  # the step from which on a state has lasted
        self.initial_cosines: dict[str, float] = {}  # by tower, before training
        self._sums: dict[str, Tensor] = {}  # of vectors, by tower

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not trainer._logger_connector.should_update_logs:
            return
        # read on all ranks, here and below: what is logged with sync_dist may be reduced when it is read first
        metrics, step = trainer.callback_metrics, trainer.global_step
        if not trainer.is_global_zero:
            return
        objective: Any = pl_module.objective
        if self.flat_steps is not None and function_of(objective.loss) is info_nce:
            self._check_loss(metrics, objective.contrastive, step)
        if self.scale_steps is not None:
            self._check_scales(metrics, objective.max_scale, step)

    def _check_loss(self, metrics: dict[str, Tensor], pairs: dict[str, Any], step: int) -> None:
        losses = [float(metrics[key]) for key in (f"train/loss/{name}" for name in pairs) if key in metrics]
        negatives = float(metrics.get("train/negatives_per_row", 0.0))
        if not losses or negatives < 1:
            return
        guessing, loss = math.log(1 + negatives), sum(losses) / len(losses)
        assert self.flat_steps is not None
        if self._lasts("loss", abs(loss - guessing) < self.flat_tolerance * guessing, step) >= self.flat_steps:
            self.warn_once(
                "flat_loss",
                f"step {step}: the loss of a pair has been that of guessing among {1 + negatives:.0f} rows, "
                f"{guessing:.2f}, for {self.flat_steps} steps: nothing is learnt; try another optim.lr, and see "
                "whether queries and products belong together",
            )

    def _check_scales(self, metrics: dict[str, Tensor], maximum: float, step: int) -> None:
        for key in [key for key in metrics if key.startswith("train/logit_scale")]:
            scale, name = float(metrics[key]), key.removeprefix("train/").replace("_", " ")
            assert self.scale_steps is not None
            if self._lasts(key, scale > 0.999 * maximum, step) >= self.scale_steps:
                self.warn_once(
                    f"{key}/maximum",
                    f"step {step}: the {name} has been at its maximum, loss.max_scale={maximum:g}, for "
                    f"{self.scale_steps} steps; early in a run that is a sign of too large an optim.lr",
                )
            if not MIN_SCALE <= scale <= MAX_SCALE:
                self.warn_once(
                    f"{key}/diverges",
                    f"step {step}: the {name} is {scale:.3g}: it diverges; try a smaller optim.lr or another "
                    "loss.init_scale",
                )

    def _lasts(self, name: str, is_so: bool, step: int) -> int:
        """Return for how many steps something has been so."""
        if not is_so:
            self.since.pop(name, None)
            return 0
        return step - self.since.setdefault(name, step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        waited = [value for key, value in trainer.callback_metrics.items() if key.startswith("train/data_wait")]
        # the first epoch starts the workers
        if self.max_data_wait is None or not waited or trainer.current_epoch == 0:
            return
        if (fraction := float(waited[0])) > self.max_data_wait:
            self.warn_once(
                "data_wait",
                f"epoch {trainer.current_epoch}: training waited for data in {fraction:.0%} of the time; raise "
                "data.num_workers",
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sums = {}

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
            return
        embeddings: Embeddings = outputs["embeddings"]
        for name, vectors_BD in embeddings.vectors.items():
            counted_B1 = (embeddings.present[name] & ~batch.is_padding)[:, None]
            # the last column counts rows
            rows_BE = torch.cat([vectors_BD.float(), torch.ones_like(vectors_BD[:, :1], dtype=torch.float32)], 1)
            total_E = rows_BE.masked_fill(~counted_B1, 0.0).sum(0)
            self._sums[name] = self._sums[name] + total_E if name in self._sums else total_E

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        metric = trainer.callback_metrics.get(self.monitor)
        if not trainer.is_global_zero:
            return
        cosines = {name: mean_cosine(total_E) for name, total_E in self._sums.items()}
        if trainer.sanity_checking:
            self.initial_cosines = {name: cosine for name, cosine in cosines.items() if cosine is not None}
            return
        for name, cosine in cosines.items():
            if self.max_cosine is None or cosine is None:
                continue
            if cosine > self.max_cosine and cosine >= self.initial_cosines.get(name, 0.0):
                self.warn_once(
                    f"collapse/{name}",
                    f"epoch {trainer.current_epoch}: tower '{name}' gives nearly one vector for all rows, their mean "
                    f"cosine is {cosine:.3f}: it has collapsed; try a smaller optim.lr or a larger data.batch_size",
                )
        if metric is not None:
            self._check_metric(trainer, float(metric))

    def _check_metric(self, trainer: Trainer, value: float) -> None:
        evaluation = next((c for c in trainer.callbacks if isinstance(c, RetrievalEval)), None)  # type: ignore[attr-defined]
        before = evaluation.initial.get(self.monitor) if evaluation else None
        if before is not None and value < before:
            self.warn_once(
                "metric",
                f"epoch {trainer.current_epoch}: {self.monitor} is {value:.3f}, below {before:.3f} before "
                "training; try a smaller optim.lr or optim.lr_scales.encoder",
            )

    def warn_once(self, name: str, message: str) -> None:
        """Print a warning if none was printed under this name, by this start of the run or an earlier one."""
        if name not in self.given:
            self.given.add(name)
            warn(message)

    def state_dict(self) -> dict[str, Any]:
        return {"given": sorted(self.given), "since": dict(self.since), "initial_cosines": dict(self.initial_cosines)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.given, self.since = set(state_dict["given"]), dict(state_dict["since"])
        self.initial_cosines = dict(state_dict["initial_cosines"])


def mean_cosine(total_E: Tensor) -> float | None:
    """Return the mean cosine of two different rows, from the sum of unit vectors and, last, their number."""
    count = float(total_E[-1])
    return float((total_E[:-1].square().sum() - count) / (count * (count - 1))) if count > 1 else None
