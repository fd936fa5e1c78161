"""Callback that ends a training after a time, at a step that all ranks have finished and with a validation."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import rank_zero_info

from mim_lightning.lit.callbacks.preemption import is_last_step, is_validation_due
from mim_lightning.lit.rank_agreement import RankAgreement
from mim_lightning.types import Batch

END = "end"


class TimeLimit(Timer):
    """Lightning's timer, which counts over all starts of a run, without a broadcast in every step.

    Rank zero's clock decides. The step under way is finished, and what it leads to is validated if
    `trainer.check_val_every_n_epoch` allows that, so that a run which is given more time goes on as one that was not
    stopped.
    """

    def __init__(self, limit: timedelta) -> None:
        super().__init__(limit, verbose=False)
        self._agreement: RankAgreement | None = None
        self._ends_after_validation = False
        self.has_ended_training = False  # before its natural end

    @property
    def state_key(self) -> str:
        return Timer.__qualname__

    @property
    def is_reached(self) -> bool:
        assert self._duration is not None
        return self.time_elapsed() >= self._duration

    def on_fit_start(self, trainer: Trainer, *args: Any, **options: Any) -> None:
        """Leave it to `on_train_start`: some strategies restore the time used so far after this."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._agreement = RankAgreement(trainer.world_size, trainer.strategy.root_device)
        if trainer.strategy.broadcast(self.is_reached):  # by former starts of the run
            self._agreement = None
            self.has_ended_training = True
            # a validation that the run was stopped before comes first
            self._ends_after_validation = trainer.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation
            trainer.should_stop = not self._ends_after_validation

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self._ends_after_validation:
            self._ends_after_validation = False
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._agreement is None or trainer.fit_loop._should_accumulate():
            return
        request = END if self.is_reached and trainer.is_global_zero else ""
        if self._agreement.at_step(trainer.global_step, request):
            self._agreement = None
            if is_last_step(trainer):
                return
            self.has_ended_training = trainer.should_stop = True
            rank_zero_info(
                f"trainer.max_time: ends after step {trainer.global_step}; the same command with more time, or none, "
                "goes on from it"
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count the step before a validation that was not due.

        Lightning counts it after the validation, and when a run resumes only where one is due.
        """
        if not trainer.should_stop or not trainer.validating:
            return
        trainer.should_stop = False
        is_due = is_validation_due(trainer)
        trainer.should_stop = True
        if not is_due:
            checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] += 1


def seconds_trained(trainer: Trainer) -> float | None:
    """Return the seconds of a training that its time limit has ended, over all its starts, else None."""
    found = [callback for callback in trainer.callbacks if isinstance(callback, TimeLimit)]  # type: ignore[attr-defined]
    return found[0].time_elapsed() if any(limit.has_ended_training for limit in found) else None
