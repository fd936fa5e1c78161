"""A run has one CSV file: a resumed run appends to it, and repeated steps are in it once."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from mim_lightning.io.damaged_file import DamagedFileError
from mim_lightning.lit.csv_logger import RunCSVLogger

PATH = Path("csv/version_0/metrics.csv")


def log(folder: Path, *rows: dict[str, float]) -> None:
    """Log rows, each with its step, as one start of a run does."""
    logger = RunCSVLogger(folder, "csv", flush_logs_every_n_steps=2)
    for row in rows:
        metrics = {name: torch.tensor(value) for name, value in row.items() if name != "step"}
        logger.log_metrics(metrics, int(row["step"]))  # type: ignore[arg-type]
    logger.finalize("success")


def read(folder: Path) -> list[dict[str, float]]:
    with (folder / PATH).open(newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def rate(step: int) -> dict[str, float]:
    return {"lr-Adam": 0.5, "step": step}


def train(epoch: int, step: int, loss: float = 0.25) -> dict[str, float]:
    return {"train/loss": loss, "epoch": epoch, "step": step}


def val(epoch: int, step: int) -> dict[str, float]:
    return {"val/hit": 0.125, "epoch": epoch, "step": step}


FIRST = [val(-1, 0), rate(0), train(0, 0), train(0, 1), val(0, 2), rate(2), train(1, 2), train(1, 3), val(1, 4)]


@pytest.mark.parametrize(
    ("again", "num_kept"),
    [
        ([rate(2), train(1, 2, 1.0), train(1, 3, 1.0), val(1, 4)], 5),  # from the end of an epoch
        ([train(1, 3, 1.0), val(1, 4), train(2, 4)], 7),  # from amid one
        ([rate(4), train(2, 4)], 9),  # where it had come to
        ([val(-1, 0), train(0, 0, 1.0)], 0),  # there was no checkpoint yet
    ],
)
def test_a_resumed_run_continues_its_file(tmp_path: Path, again: list[dict[str, float]], num_kept: int) -> None:
    log(tmp_path, *FIRST)
    assert read(tmp_path) == FIRST
    log(tmp_path, *again)
    assert read(tmp_path) == [*FIRST[:num_kept], *again]
    assert [path.name for path in (tmp_path / "csv").iterdir()] == ["version_0"]


def test_a_validation_amid_an_epoch_stays(tmp_path: Path) -> None:
    log(tmp_path, train(0, 0), val(0, 1), train(0, 1))
    log(tmp_path, train(0, 1, 1.0))
    assert read(tmp_path) == [train(0, 0), val(0, 1), train(0, 1, 1.0)]


def test_a_row_that_is_written_ahead_of_a_checkpoint_is_there_once(tmp_path: Path) -> None:
    first = RunCSVLogger(tmp_path, "csv", flush_logs_every_n_steps=2)
    full = {**train(0, 1), "late": 2.0}
    for row, again in ((train(0, 0), train(0, 0)), (train(0, 1), full), (train(0, 2), None)):  # killed before the last
        step = int(row.pop("step"))
        first.log_ahead(row, step)
        assert read(tmp_path)[-1] == {**row, "step": step}
        if again:
            first.log_metrics({name: value for name, value in again.items() if name != "step"}, step)
            first.save()
    assert read(tmp_path) == [train(0, 0), full, train(0, 2)]
    log(tmp_path, train(1, 3))
    assert read(tmp_path) == [train(0, 0), full, train(0, 2), train(1, 3)]


def test_a_partial_line_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    log(tmp_path, train(0, 0), train(0, 1))
    with (tmp_path / PATH).open("a") as file:
        file.write("1,2")
    log(tmp_path, train(1, 2))
    assert read(tmp_path) == [train(0, 0), train(0, 1), train(1, 2)]


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "epoch,step,x\n0,one,2\n", "epoch,step\n,\n"])
def test_a_file_that_is_no_log_is_named(tmp_path: Path, content: str) -> None:
    log(tmp_path, *FIRST)
    (tmp_path / PATH).write_text(content)
    if content:
        with pytest.raises(DamagedFileError, match=r"metrics\.csv: damaged \(.*\); remove it"):
            log(tmp_path, train(2, 4))
    else:
        log(tmp_path, train(2, 4))
        assert read(tmp_path) == [train(2, 4)]


def test_the_last_of_several_files_of_an_older_version_is_continued(tmp_path: Path) -> None:
    for name in ("version_0", "version_3"):
        (tmp_path / "csv" / name).mkdir(parents=True)
    log(tmp_path, train(0, 0))
    assert (tmp_path / "csv" / "version_3" / "metrics.csv").is_file()
