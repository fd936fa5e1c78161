"""TensorBoard logger whose failed writes are errors of the run that name their folder, as those of the CSV logger are.

TensorBoard writes in a thread of its own. An error there comes back with the next call, but the thread prints a call
stack before it ends.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from mim_lightning.io.atomic import write_errors_named

WRITER = "tensorboard.summary.writer.event_file_writer"  # module of that thread


class RunTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger: on a full disk a run ends in one line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not isinstance(threading.excepthook, _WithoutStack):
            threading.excepthook = _WithoutStack(threading.excepthook)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        with write_errors_named(Path(self.root_dir)):
            return super().experiment

    def log_metrics(self, *args: Any, **options: Any) -> None:
        with write_errors_named(Path(self.root_dir)):
            try:
                super().log_metrics(*args, **options)
            except ValueError as error:  # Lightning's for any error, as if the type of the value were wrong
                if isinstance(error.__cause__, OSError):
                    raise error.__cause__ from None
                raise

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        with write_errors_named(Path(self.root_dir)):
            super().log_hyperparams(*args, **options)

    @rank_zero_only
    def save(self) -> None:
        path = Path(self.log_dir) / self.NAME_HPARAMS_FILE
        was_there = path.is_file()
        try:
            with write_errors_named(path):
                super().save()
        except OSError:
            if not was_there:
                path.unlink(missing_ok=True)  # written in place: half of it would be left
            raise

    def finalize(self, status: str) -> None:
        ended_by = sys.exc_info()[1]
        try:
            with write_errors_named(Path(self.root_dir)):
                super().finalize(status)
        except OSError:
            if status == "success" or isinstance(ended_by, OSError):
                raise  # else it would hide what ended the run


class _WithoutStack:
    """A hook for errors of threads that leaves those of TensorBoard's writes to the next call."""

    def __init__(self, hook: Any) -> None:
        self.hook = hook

    def __call__(self, found: threading.ExceptHookArgs) -> None:
        if not (isinstance(found.exc_value, OSError) and type(found.thread).__module__ == WRITER):
            self.hook(found)
