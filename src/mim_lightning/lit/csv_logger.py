"""CSV logger with one file a run, to which a resumed run appends.

Lightning's CSVLogger starts a new folder at each start. Here rows of steps that are repeated, because the last
checkpoint is older, are replaced.

    <run>/csv/version_0/metrics.csv    columns epoch, step, and one a scalar; most cells are empty
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from mim_lightning.io.atomic import atomic_write, write_errors_named
from mim_lightning.io.damaged_file import errors_as_damaged_file

METRICS_FILE = "metrics.csv"
PLACE = ("epoch", "step")
Row = Mapping[str, Any]


class RunCSVLogger(CSVLogger):
    """Lightning's CSVLogger with one file a run, however often the run is started."""

    @property
    def version(self) -> int | str:
        if self._version is None:
            self._version = max(0, self._get_next_version() - 1)  # older versions of this code wrote several
        return self._version

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _MetricsFile(Path(self.log_dir) / METRICS_FILE)  # type: ignore[assignment]
        return self._experiment

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._is_write_due = False

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        if self._is_write_due:
            self.experiment.save()
            self._is_write_due = bool(self.experiment.metrics)  # a learning rate alone is not written

    @rank_zero_only
    def log_ahead(self, metrics: Mapping[str, Any], step: int) -> None:
        """Write a row that will be logged again, after a checkpoint of its step: a kill between the two keeps it."""
        self.experiment.save_ahead(metrics, step)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Write what was logged so far, and the next row: a run that is killed resumes from this checkpoint.

        Callbacks save before Lightning logs the step.
        """
        self.experiment.save()
        self._is_write_due = True


class _MetricsFile:
    """The rows of a file, written at `save`; existing rows are read at the first write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics: list[dict[str, Any]] = []  # to be written
        self._columns: list[str] | None = None  # of the file, once it is rewritten
        self._ahead: dict[str, Any] | None = None  # the last row of the file, if it is to be logged again

    def log_hparams(self, params: Mapping[str, Any]) -> None:
        """Nothing to write: the run's config is beside the file."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self.metrics.append({**row, "step": step})

    def save_ahead(self, metrics: Mapping[str, Any], step: int) -> None:
        self.log_metrics(metrics, step)
        row = self.metrics[-1]
        self.save()
        self._ahead = None if self.metrics else row

    def save(self) -> None:
        if not self.metrics:
            return
        ahead, self._ahead = self._ahead, None
        if ahead == self.metrics[0]:
            del self.metrics[0]
            self.save()
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._columns is None:
            idx = next((idx for idx, row in enumerate(self.metrics) if row.get("epoch") is not None), None)
            if idx is None:
                return  # a learning rate alone has no epoch
            first = set().union(*self.metrics[: idx + 1])
            former = takewhile(lambda row: not _is_repeated(row, self.metrics[idx], first), self._read())
            self._rewrite([*former])
        elif ahead is not None or set().union(*self.metrics) - set(self._columns):
            is_replaced = ahead is not None and ahead["step"] == self.metrics[0]["step"]
            self._rewrite(self._read()[: -1 if is_replaced else None])
        else:
            with write_errors_named(self.path), self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerows(self.metrics)
        self.metrics = []

    def _rewrite(self, former: list[Row]) -> None:
        rows = [*former, *self.metrics]
        self._columns = sorted(set().union(*rows))
        with atomic_write(self.path, is_synced=False) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)

    def _read(self) -> list[Row]:
        if not self.path.exists():
            return []
        with errors_as_damaged_file(self.path, "remove it: it is only a log"), self.path.open(newline="") as file:
            # a process that was killed while it wrote leaves half a line
            rows: list[Row] = [row for row in csv.DictReader(file) if None not in row.values() and None not in row]
            for row in rows:  # raises where epoch or step is no number
                _place_of(row)
            return rows


def _is_repeated(former: Row, new: Row, names: set[str]) -> bool:
    """Is a former row the first of the steps that are logged again? Rows are in the order of time.

    Args:
        former: the row.
        new: the first new row that has an epoch.
        names: the columns of the new rows up to that one.
    """
    (epoch, step), new_step = _place_of(former), int(new["step"])
    new_epoch = float(new["epoch"]) if epoch is not None else None
    if (epoch, step) != (new_epoch, new_step):
        return step > new_step if epoch is None or new_epoch is None else (epoch, step) > (new_epoch, new_step)
    # a validation has the step of a training row too
    filled = {name for name, cell in former.items() if cell} - set(PLACE)
    return bool(filled & names)


def _place_of(former: Row) -> tuple[float | None, int]:
    """Return epoch, if the row has one, and step."""
    return float(former["epoch"]) if former.get("epoch") else None, int(float(former["step"]))
