"""Terminal output of training and evaluation: the progress bar, warnings, and which lines of Lightning are dropped."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import BarColumn, TimeRemainingColumn

BAR_WIDTH = 10  # characters
DROPPED = (  # starts of Lightning's messages that say nothing to a user of this project
    "Tip:",
    "Loading `train_dataloader`",
    "TPU available",
    "GPU available",
    "Restoring states",
    "Loaded model weights",
    "Found current_model_state",
    "You're using the WeightAveraging callback, but saving",
)
DROPPED_WARNINGS = (
    # workers are a matter of data.num_workers; epoch-level values are equal on all ranks before they are logged
    ".*does not have many workers.*",
    ".*sync_dist=True.*",
    ".*treespec.*",
    ".*in eval mode at the start of training.*",  # frozen parts, as their towers want them
    ".*not supported by the model summary.*",
    # configure_model adds no layer here, and evaluation reads the average as any weights
    ".*using the WeightAveraging callback.*",
    ".*is smaller than the logging interval.*",  # the mean of an epoch is logged whatever its length
)
LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")


def silence_lightning() -> None:
    """Drop the lines of Lightning that say nothing to a user of this project."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(lambda record: not any(text in record.getMessage() for text in DROPPED))
    for message in DROPPED_WARNINGS:
        warnings.filterwarnings("ignore", message)


@rank_zero_only
def warn(message: str) -> None:
    """Print one warning line, without the file and line number that `rank_zero_warn` puts before it."""
    logging.getLogger(LOGGERS[0]).warning(message)


class ProgressBar(RichProgressBar):
    """Lightning's bar with the loss and the last value of the monitored metric, on one line of 80 columns.

    The loss is the mean over the rows of the epoch so far: a single batch, the last of which may have a row or two,
    says little. On a GPU, and with several processes, it changes every `trainer.log_every_n_steps` steps.
    """

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        description, bar, batches, _, speed = super().configure_columns(trainer)
        assert isinstance(bar, BarColumn)
        bar.bar_width = BAR_WIDTH
        return [description, bar, batches, TimeRemainingColumn(compact=True, elapsed_when_finished=True), speed]

    @contextmanager
    def counting(self, total: int, what: str) -> Iterator[Callable[[int], None]]:
        """Show a further line while something else is done, by what is yielded: it takes how many are done."""
        if self.progress is None or self.is_disabled:
            yield lambda num_done: None
            return
        task = self._add_task(total, what)
        try:
            yield lambda num_done: self._update(task, num_done)
        finally:
            self.progress.update(task, visible=False)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = {name.rsplit("/", 1)[-1]: value for name, value in super().get_metrics(trainer, pl_module).items()}
        metrics.pop("v_num", None)
        return {"loss": metrics.pop("running_loss"), **metrics} if "running_loss" in metrics else metrics
