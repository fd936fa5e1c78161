"""The training log of a run, from its CSV files.

    <run>/csv/version_0/metrics.csv    columns epoch, step, and one for each scalar; most cells are empty

A run may have one file for each start: where two have the same step or epoch, the later one counts.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mim_lightning.io.damaged_file import FileError, errors_as_damaged_file

LOG_FOLDER, LOG_FILE = "csv", "metrics.csv"
BY_EPOCH = "val/"  # prefix of scalars that belong to an epoch; -1 is before training

Series = Mapping[int, float]  # epoch or step -> value, ascending


@dataclass(frozen=True)
class TrainingLog:
    """Scalars of a run, by name."""

    by_epoch: dict[str, Series]  # "val/<direction>/<metric>"
    by_step: dict[str, Series]  # "train/loss/<pair>", "train/logit_scale", ...; steps count from 0


def read_log(folder: Path) -> TrainingLog:
    """Read the log of a run's folder.

    Raises:
        ValueError: there is none, or a cell is not a number.
    """
    paths = sorted((folder / LOG_FOLDER).glob(f"version_*/{LOG_FILE}"), key=_version)
    if not paths:
        raise ValueError(
            f"{folder}: contains no {LOG_FOLDER}/version_*/{LOG_FILE}; give the folder of a run (logger=csv)"
        )
    found: dict[str, dict[int, float]] = {}
    for path in paths:
        for name, position, value in _read(path):
            found.setdefault(name, {})[position] = value
    series = {name: dict(sorted(values.items())) for name, values in found.items()}
    return TrainingLog(
        by_epoch={name: values for name, values in series.items() if name.startswith(BY_EPOCH)},
        by_step={name: values for name, values in series.items() if not name.startswith(BY_EPOCH)},
    )


def _version(path: Path) -> int:
    number = path.parent.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def _read(path: Path) -> Iterator[tuple[str, int, float]]:
    with errors_as_damaged_file(path), path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            if None in row.values():
                continue  # a line that a killed run left incomplete
            for name, cell in row.items():
                position = row["epoch" if name.startswith(BY_EPOCH) else "step"]
                if name in ("epoch", "step") or not cell or not position:
                    continue
                try:
                    yield name, int(float(position)), float(cell)
                except ValueError:
                    raise FileError(f"{path}, line {number}, column '{name}': '{cell[:100]}' is not a number") from None
