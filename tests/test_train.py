"""Processes that another launcher started decide together whether their run is to be trained."""

from pathlib import Path

import pytest

from mim_lightning import train, training
from mim_lightning.config import compose
from mim_lightning.run import Run, identify

RESULTS = {"val/recall": 0.5}


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("is_finished", [True, False])
def test_no_process_of_another_launcher_decides_by_itself(
    rank: str, is_finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", rank)
    config = compose("train", [f"paths.runs={tmp_path}"])
    run = identify(config)[0]
    if is_finished:
        run.folder.mkdir()
        run.write_results(RESULTS)
    fitted: list[Run] = []
    for module in (train, training):
        monkeypatch.setattr(module, "fit", lambda _, run, __: fitted.append(run))
    train.train(config)
    assert fitted == [run]


def test_rank_zero_that_waited_for_results_still_joins_the_other_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    config = compose("train", [f"paths.runs={tmp_path}"])
    fitted: list[Run] = []
    monkeypatch.setattr(training, "clear_notes", lambda _: identify(config)[0].write_results(RESULTS))
    for module in (train, training):
        monkeypatch.setattr(module, "fit", lambda _, run, __: fitted.append(run))
    train.train(config)
    assert len(fitted) == 1
