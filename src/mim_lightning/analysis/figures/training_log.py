"""The training log of a run, from its CSV files.

    <run>/csv/version_0/metrics.csv    columns epoch, step, and one for each scalar; most cells are empty

A run may have one file for each start: where two have the same step or epoch, the later one counts.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mim_lightning.io.damaged_file import FileError, errors_as_damaged_file

LOG_FOLDER, LOG_FILE = "csv", "metrics.csv"
BY_EPOCH = "val/"  # prefix of scalars that belong to an epoch; -1 is before training

INITIAL_EPOCH = -1  # before training

Series = Mapping[int, float]  # epoch or step -> value, ascending


@dataclass(frozen=True)
class TrainingLog:
    """Scalars of a run, by name."""

    by_epoch: dict[str, Series]  # "val/<direction>/<metric>"
    by_step: dict[str, Series]  # "train/loss/<pair>", "train/logit_scale", ...; steps count from 0
    by_pass: dict[str, Series] = field(default_factory=dict)  # as `by_epoch`, by the steps before the validation

    @property
    def has_passes_within_epochs(self) -> bool:
        """Return whether an epoch has several validations, of which `by_epoch` has the last."""
        return any(len(values) > len(self.by_epoch[name]) for name, values in self.by_pass.items())


def read_log(folder: Path, only: Collection[str] | None = None) -> TrainingLog:
    """Read the log of a run's folder.

    Args:
        only: the scalars to read; None: all.

    Raises:
        ValueError: there is none, or a cell is not a number.
    """
    paths = sorted((folder / LOG_FOLDER).glob(f"version_*/{LOG_FILE}"), key=_version)
    if not paths:
        raise ValueError(
            f"{folder}: contains no {LOG_FOLDER}/version_*/{LOG_FILE}; give the folder of a run (logger=csv)"
        )
    by_epoch, by_step, by_pass = (dict[str, dict[int, float]]() for _ in range(3))
    for path in paths:
        for name, epoch, step, value in _read(path, only):
            if not name.startswith(BY_EPOCH):
                if step is not None:
                    by_step.setdefault(name, {})[step] = value
            elif epoch is not None:
                by_epoch.setdefault(name, {})[epoch] = value
                if step is not None:
                    # a row has the last step that was done, counted from 0; the one before training has 0 too
                    by_pass.setdefault(name, {})[0 if epoch == INITIAL_EPOCH else step + 1] = value
    return TrainingLog(*map(_in_order, (by_epoch, by_step, by_pass)))


def _in_order(found: Mapping[str, Series]) -> dict[str, Series]:
    return {name: dict(sorted(values.items())) for name, values in found.items()}


def _version(path: Path) -> int:
    number = path.parent.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def _read(path: Path, only: Collection[str] | None) -> Iterator[tuple[str, int | None, int | None, float]]:
    """Yield name, epoch, step and value of each cell."""
    with errors_as_damaged_file(path), path.open(newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        places = [header.index(name) if name in header else None for name in ("epoch", "step")]
        if header and places == [None, None]:
            raise ValueError("it has neither a column 'step' nor 'epoch'")
        columns = [
            (idx, name) for idx, name in enumerate(header) if idx not in places and (only is None or name in only)
        ]
        for number, row in enumerate(rows, start=2):
            if len(row) < len(header):
                continue  # a line that a killed run left incomplete
            if len(row) > len(header):
                raise ValueError(f"line {number} has more cells than there are columns")
            for idx, name in columns:
                if not row[idx]:
                    continue
                try:
                    epoch, step = (
                        int(float(row[place])) if place is not None and row[place] else None for place in places
                    )
                    yield name, epoch, step, float(row[idx])
                except ValueError:
                    raise FileError(
                        f"{path}, line {number}, column '{name}': '{row[idx][:100]}' is not a number"
                    ) from None
