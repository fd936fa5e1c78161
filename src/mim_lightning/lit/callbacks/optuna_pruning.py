"""Callback that ends a trial of a hyperparameter search early, by the decision of Optuna's pruner.

The sweeper names the trial through the top-level config key `trial`; other runs have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from mim_lightning.lit.console import warn


class OptunaPruning(Callback):
    """Reports the monitored metric of each validation to a trial, and raises TrialPruned when its pruner decides so.

    A report is numbered by its epoch; where validations are by steps, by the validations before it, so that each has
    its own number, and trials of other batch sizes are compared after the same fraction of an epoch.

    Args:
        monitor: the metric that is reported; higher is better.
        trial: `number`, `study`, `storage` (see `optuna_study.open_study`), `pruner`, and `warmup_epochs`, before
            which no trial is pruned; None outside a search.
    """

    def __init__(self, monitor: str, trial: Mapping[str, Any] | None = None) -> None:
        self.monitor, self.trial = monitor, trial
        self.num_validations = 0

    @cached_property
    def _reported(self) -> Any:
        from mim_lightning.sweep.optuna_study import open_study, open_trial

        assert self.trial is not None
        study = open_study(self.trial["storage"], self.trial["study"], pruner=self.trial["pruner"])
        return open_trial(study, self.trial["number"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.trial is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self.num_validations += 1
        # rank zero asks for all ranks: the study changes between two requests, and ranks must end together
        verdict = self._ask(trainer) if trainer.is_global_zero else None
        verdict = trainer.strategy.broadcast(verdict)
        if verdict is not None:
            from optuna import TrialPruned

            raise TrialPruned(verdict)

    def _ask(self, trainer: Trainer) -> str | None:
        """Report the validation, and return why the trial is pruned, or None."""
        from optuna.exceptions import OptunaError

        assert self.trial is not None
        value, epoch = float(trainer.callback_metrics[self.monitor]), trainer.current_epoch
        if not math.isfinite(value):
            return None
        is_by_step = _validates_within_epochs(trainer)
        number = self.num_validations - 1 if is_by_step else epoch
        place = f"step {trainer.global_step}, in epoch {epoch}" if is_by_step else f"epoch {epoch}"
        try:
            self._reported.report(value, number)
            lags_behind = epoch >= self.trial["warmup_epochs"] and self._reported.should_prune()
        except (OptunaError, OSError, ValueError) as error:
            # losing the run would cost more than pruning it could save
            warn(f"{place} could not be reported to the search: {error}")
            return None
        return f"pruned after {place}: {self.monitor} was {value:.3f}" if lags_behind else None

    def state_dict(self) -> dict[str, Any]:
        return {"num_validations": self.num_validations} if self.trial is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_validations = state_dict["num_validations"]


def _validates_within_epochs(trainer: Trainer) -> bool:
    """Return whether an epoch may have several validations."""
    interval = trainer.val_check_batch  # None: by a time
    return trainer.check_val_every_n_epoch is None or interval is None or interval < trainer.num_training_batches
