"""Callback that writes last.ckpt between validations: after a time, and when Ctrl-C or SIGTERM stops the run.

A checkpoint is of an optimizer step that all ranks have finished, so a resumed run repeats none and omits none. One
that was due to be validated when it was written is validated first when the run resumes.
"""

from __future__ import annotations

import time
from typing import Any, NoReturn
from weakref import proxy

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from mim_lightning import interruption
from mim_lightning.interruption import Interruption
from mim_lightning.lit.csv_logger import RunCSVLogger
from mim_lightning.lit.rank_agreement import RankAgreement
from mim_lightning.types import Batch

SAVE = "save"  # the other request is the number of a signal


class Preemption(Checkpoint):
    """Saves through the checkpoint callback whose file is "last"; without one a signal stops the run at once.

    Args:
        every_minutes: of training without a save; None: saves after validations only.
        patience: seconds that a stop waits for the end of the step, before the process exits without a checkpoint of
            it; the schedulers of clusters kill after 30 seconds and more.
        save_patience: further seconds in which the checkpoint has to be written. It replaces the former one when it is
            complete.
    """

    def __init__(self, every_minutes: float | None = 30.0, patience: float = 30.0, save_patience: float = 60.0) -> None:
        options = {"every_minutes": every_minutes, "patience": patience, "save_patience": save_patience}
        for name, value in options.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
            if not is_number and not (name == "every_minutes" and value is None):
                allowed = "a number above 0, or null" if name == "every_minutes" else "a number above 0"
                raise ValueError(f"callbacks.preemption.{name}={value}: give {allowed}")
        self.every_minutes, self.patience, self.save_patience = every_minutes, patience, save_patience
        self._last: ModelCheckpoint | None = None
        self._agreement: RankAgreement | None = None
        self._is_leaving_validation = self._is_stopping = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _restore_validation_counts(trainer)
        checkpoints = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        self._last = next((callback for callback in checkpoints if callback.filename == "last"), None)
        if self._last is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._agreement = RankAgreement(trainer.world_size, trainer.strategy.root_device)
        self._saved = time.monotonic()
        if interruption.is_handling():
            interruption.defer(self.patience)
            # Lightning asks rank zero for its signal before every batch, and waits for the device
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._agreement is None or trainer.fit_loop._should_accumulate():
            return
        step = trainer.global_step
        request = self._agreement.at_step(step, self._request(trainer))
        # a run that ends without a validation: its last checkpoint must not depend on the clock
        is_end = is_last_step(trainer) and not is_validation_due(trainer)
        if request and request != SAVE:
            # logged as Lightning does after this hook
            self._is_stopping = True
            trainer._logger_connector.on_batch_end()
            trainer._logger_connector.update_train_step_metrics()
            self._stop(trainer, int(request), is_saved=is_end or step < trainer.max_steps or trainer.max_steps == -1)
        elif request or is_end:
            self._save(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._agreement is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        loop = trainer.fit_loop.epoch_loop.val_loop
        signum = interruption.requested_stop()
        request = self._agreement.leave_pass(str(signum or ""), loop.batch_progress.is_last_batch)
        if request:
            self._is_leaving_validation = True
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):
                    callback.on_validation_epoch_end(trainer, pl_module)  # the live weights come back
            has_steps_left = trainer.max_steps == -1 or trainer.global_step < trainer.max_steps
            self._stop(trainer, int(request), is_saved=has_steps_left)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = time.monotonic()  # `last` saves then

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._agreement is None:
            return
        self._agreement = None
        # a signal in the last step may have reached one rank only
        own = torch.tensor(float(interruption.end_deferral() or 0), device=trainer.strategy.root_device)
        if signum := int(trainer.strategy.reduce(own, reduce_op="max")):
            raise Interruption(signum)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._agreement = None
        interruption.end_deferral()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the position of a run that is to validate first when it resumes.

        Lightning stores one after the validation, which would be omitted.
        """
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        is_batch_end = progress.completed < progress.processed
        if is_batch_end and not self._is_stopping:
            _log_ahead(trainer)
        if not self._is_leaving_validation and not (is_batch_end and is_validation_due(trainer)):
            return
        loops = checkpoint["loops"]["fit_loop"]
        for counts in (loops["epoch_loop.batch_progress"][name] for name in ("total", "current")):
            counts["completed"] = counts["processed"]
        validation = loops["epoch_loop.val_loop.batch_progress"]
        before = validation["total"]["completed"] - validation["current"]["completed"] * self._is_leaving_validation
        # as amid its first batch: Lightning then begins with the validation
        for name, done in (("total", before), ("current", 0)):
            validation[name] |= {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
        validation["is_last_batch"] = False

    def _request(self, trainer: Trainer) -> str:
        if (signum := interruption.requested_stop()) is not None:
            return str(signum)
        minutes = (time.monotonic() - self._saved) / 60
        is_due = self.every_minutes is not None and minutes >= self.every_minutes and trainer.is_global_zero
        return SAVE if is_due else ""

    def _save(self, trainer: Trainer) -> None:
        assert self._last is not None
        # not by `last` itself, which would not save again after the validation of the same step
        trainer.save_checkpoint(self._last.format_checkpoint_name({}), weights_only=False)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self._last))
        self._saved = time.monotonic()

    def _stop(self, trainer: Trainer, signum: int, is_saved: bool) -> NoReturn:
        interruption.exit_after(self.save_patience, signum)
        where = f"at step {trainer.global_step}"
        if is_saved:
            try:
                self._save(trainer)
            except OSError as error:  # of rank zero, which writes; the others wait for it
                where += f", which could not be saved ({error.filename}: {error.strerror})"
                trainer.strategy.barrier("Trainer.save_checkpoint")
        raise Interruption(signum, where)


def _restore_validation_counts(trainer: Trainer) -> None:
    """Remove the batch in which a validation seemed to be: the run begins with the whole."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    if loop.restarted_mid_evaluation:
        total: Any = loop.batch_progress.total
        total.ready = total.started = total.completed


def _log_ahead(trainer: Trainer) -> None:
    """Have loggers that can write the present step before its checkpoint: Lightning logs it afterwards.

    A run that is killed between the two begins with the next step.
    """
    connector = trainer._logger_connector
    loggers = [logger for logger in trainer.loggers if isinstance(logger, RunCSVLogger)]
    if not loggers or not connector.should_update_logs:
        return
    row = convert_tensors_to_scalars(connector.metrics["log"])
    if not row or "step" in row:
        return
    for logger in loggers:
        logger.log_ahead({"epoch": trainer.current_epoch, **row}, trainer.fit_loop.epoch_loop._batches_that_stepped)


def is_last_step(trainer: Trainer) -> bool:
    """Return whether training ends with the present batch."""
    loop = trainer.fit_loop
    is_last_epoch = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
    return (
        0 < trainer.max_steps <= trainer.global_step
        or (is_last_epoch and loop.epoch_loop.batch_progress.is_last_batch)
        or (trainer.should_stop and loop._can_stop_early)
    )


def is_validation_due(trainer: Trainer) -> bool:
    """Return whether a validation follows the present batch."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    is_by_clock = getattr(trainer, "_val_check_time_interval", None) is not None
    return fetcher is not None and not is_by_clock and loop._should_check_val_fx(fetcher)
