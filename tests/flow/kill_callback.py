"""Callbacks that end the process as a power cut would, send it a signal, or sleep, after so many steps; or watch it."""

import builtins
import math
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lightning import Callback
from lightning.pytorch.callbacks import Checkpoint

from mim_lightning.io import atomic
from mim_lightning.model import sharded_checkpoint


class KillAt(Callback):
    def __init__(self, step: int, rank: int = 0) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            os.kill(os.getpid(), signal.SIGKILL)


class RaiseAt(Callback):
    """Raises an error on one rank alone, as a user's own callback may."""

    def __init__(self, step: int, rank: int, error: str = "ValueError") -> None:
        self.step, self.rank, self.error = step, rank, getattr(builtins, error)

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            raise self.error("the callback of a user failed")


class LimitFiles(Callback):
    """Lets one rank write no file of more bytes from a step on: an error of the system, as of a full disk."""

    def __init__(self, step: int, rank: int, num_bytes: int) -> None:
        self.step, self.rank, self.num_bytes = step, rank, num_bytes

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, resource.RLIM_INFINITY))


class SignalAt(Callback):
    """Sends a signal to one rank while it computes the step after `step`, or validates after it."""

    def __init__(self, step: int, signum: int = signal.SIGTERM, is_validating: bool = False, rank: int = 0) -> None:
        self.step, self.signum, self.is_validating, self.rank = step, signum, is_validating, rank

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self._send(trainer, is_validating=False)

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        self._send(trainer, is_validating=True)

    def _send(self, trainer: Any, is_validating: bool) -> None:
        place = (trainer.global_step, is_validating, trainer.global_rank, trainer.sanity_checking)
        if place == (self.step, self.is_validating, self.rank, False):
            self.step = -1
            os.kill(os.getpid(), self.signum)


class SleepAt(Callback):
    """Writes a file and sleeps while it computes the step after `step`."""

    def __init__(self, step: int, path: str, seconds: float = 1000) -> None:
        self.step, self.path, self.seconds = step, Path(path), seconds

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.path.touch()
            time.sleep(self.seconds)


class SaveAt(Checkpoint):  # after the callbacks that change what is saved
    """Saves a checkpoint after `step`, as one that is stopped there would have it."""

    def __init__(self, step: int, path: str) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


class LogRows(Callback):
    """Writes the rows of each batch to a file, a line a batch, and raises an audit event where training is."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        rows = " ".join(map(str, batch.sample_nums.tolist()))
        with Path(self.path).open("a") as file:
            file.write(f"{trainer.global_rank} {trainer.current_epoch} {batch_idx}: {rows}\n")
        sys.audit("tests.training", f"{self.path}/step")

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        sys.audit("tests.training", f"{self.path}/gradients")

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            sys.audit("tests.training", f"{self.path}/validation")


class KillInSave(Callback):
    """Kills one rank in the first save of a sharded checkpoint after a step, at a place of PLACES."""

    PLACES = ("parts", "complete", "renamed")  # its part is written; all are; the former one has been renamed

    def __init__(self, step: int, place: str) -> None:
        self.step, self.place = step, place

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step != self.step:
            return
        if self.place == "parts" and trainer.global_rank == 1:
            sharded_checkpoint._measure = self._kill
        elif self.place != "parts" and trainer.global_rank == 0:
            atomic._put_in_place = self._kill

    def _kill(self, partial: Path, path: Path | None = None) -> Any:
        if self.place == "renamed" and path is not None and path.exists():
            path.rename(partial.with_suffix(".former"))
        os.kill(os.getpid(), signal.SIGKILL)


class NaNAt(Callback):
    """Makes the gradients of some steps NaN, on one rank alone."""

    def __init__(self, steps: list[int], rank: int = 0) -> None:
        self.steps, self.rank = steps, rank

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        if trainer.global_step in self.steps and trainer.global_rank == self.rank:
            loss.register_hook(lambda gradient: gradient * math.nan)
