"""Preparations and additions to prepared data that are killed anywhere: done again, they are those of one go."""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path

import pytest

from mim_lightning.data.preparation.prepared import open_prepared
from tests.campaign.kills import ENDED, kill_somewhere
from tests.campaign.outcomes import points, record_all
from tests.campaign.preparation import Prepared, files_of, is_done
from tests.campaign.processes import EntryPoint


@pytest.mark.parametrize("rng", points("prepare", 11, 1))
def test_preparation(rng: random.Random, prepared: Prepared, tmp_path: Path) -> None:
    kill_and_repeat(rng, "prepare", prepared, tmp_path)


@pytest.mark.parametrize("rng", points("add", 9, 1))
def test_addition(rng: random.Random, prepared: Prepared, tmp_path: Path) -> None:
    shutil.copytree(prepared.whole, tmp_path / "data" / "out")
    kill_and_repeat(rng, "prepare add", prepared, tmp_path)


def kill_and_repeat(rng: random.Random, what: str, prepared: Prepared, folder: Path) -> None:
    data = folder / "data"
    out = data / "out"
    words = prepared.command(what, out)
    start = partial(EntryPoint, "prepare", words, folder / "scratch", [out, data])
    kills, problem = [], None
    try:
        for _ in range(rng.choice([1, 2])):
            when = kill_somewhere(rng, start, prepared.events[what], {"main": prepared.cpu[what]}, data)
            kills.append(when)
            if out.exists():  # what is there is whole: verify raises where it is not
                open_prepared(out).verify(print)
        if not is_done(out, prepared, what):
            last = EntryPoint("prepare", words, folder / "scratch")
            assert last.wait() == 0, last.stderr[-2000:]
        assert files_of(out) == files_of(prepared.whole if what == "prepare" else prepared.grown), "other files"
        left = [path.name for path in data.rglob(".*") if path.name != ".lock"]
        assert not left, f"left behind: {left}"
    except Exception as error:  # also of a torn file, and of a process that hangs
        problem = error
    record_all("kill", what, kills, "done again: the files of one go, nothing beside them", problem)
    assert kills[0], ENDED
