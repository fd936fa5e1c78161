"""Processes that another launcher started decide together whether their run is to be trained."""

from pathlib import Path
from typing import Any

import pytest

from mim_lightning import train as door
from mim_lightning.config import compose
from mim_lightning.run import Run, identify

RESULTS = {"val/recall": 0.5}


class Others:
    """A strategy of several processes, the first of which sees what it is told."""

    def __init__(self, answer_of_first: bool) -> None:
        self.answer_of_first, self.has_group = answer_of_first, False

    def setup_environment(self) -> None:
        self.has_group = True

    def broadcast(self, own: bool) -> bool:
        assert self.has_group
        return self.answer_of_first


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("is_finished", [True, False])
def test_no_process_of_another_launcher_decides_by_itself(
    rank: str, is_finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", rank)
    config = compose("train", [f"paths.runs={tmp_path}"])
    run, _ = identify(config)
    if is_finished:
        run.folder.mkdir()
        run.write_results(RESULTS)
    fitted: list[Run] = []
    monkeypatch.setattr(door, "fit", lambda _, run: fitted.append(run))
    door.train(config)
    assert fitted == [run]


def test_the_first_that_waited_asks_the_others_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    config = compose("train", [f"paths.runs={tmp_path}"])
    fitted: list[Run] = []
    monkeypatch.setattr(door, "clear_notes", lambda _: identify(config)[0].write_results(RESULTS))
    monkeypatch.setattr(door, "fit", lambda _, run: fitted.append(run))
    door.train(config)
    assert len(fitted) == 1


@pytest.mark.parametrize("answer", [True, False])
def test_the_answer_of_the_first_is_that_of_all(answer: bool, tmp_path: Path) -> None:
    run = Run("run", tmp_path)
    if not answer:
        run.write_results(RESULTS)
    strategy: Any = Others(answer)
    assert door.is_finished(run, strategy) is answer
