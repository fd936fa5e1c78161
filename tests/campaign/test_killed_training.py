"""Runs that are killed at random moments and at every kind of file change, and resumed."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mim_lightning.run import Run
from tests.campaign.kills import ENDED, kill_somewhere
from tests.campaign.outcomes import points, record_all
from tests.campaign.processes import EntryPoint
from tests.campaign.training import WholeRun, assert_equal, assert_nothing_torn, command, rows_of

Whole = Callable[[str], WholeRun]
EQUAL = "resumed: weights, results and log equal to the bit, each row once an epoch"


@pytest.mark.parametrize("rng", points("train", 26, 2))
def test_one_process(rng: random.Random, whole_of: Whole, tmp_path: Path) -> None:
    kill_and_resume(rng, rng.choice(["1 process", "1 process, 1 data worker"]), whole_of, tmp_path)


@pytest.mark.parametrize("rng", points("train2", 12, 0))
def test_two_processes(rng: random.Random, whole_of: Whole, tmp_path: Path) -> None:
    kill_and_resume(rng, "2 processes", whole_of, tmp_path)


def kill_and_resume(rng: random.Random, place: str, whole_of: Whole, folder: Path) -> None:
    """Kill a run once or twice, then let it end."""
    whole = whole_of(place)
    shop, runs = whole.run.folder.parents[1], folder / "runs"
    run = Run(whole.run.run_id, runs / whole.run.run_id)
    words = command(shop, runs, place)
    kills, problem = [], None
    start = partial(EntryPoint, "train", words, folder / "scratch", [run.folder, runs])
    try:
        for _ in range(rng.choice([1, 2])):
            kills.append(kill_somewhere(rng, start, whole.events, whole.cpu, run.folder))
            assert_nothing_torn(runs)
        last = EntryPoint("train", words, folder / "scratch")
        assert last.wait() == 0, last.stderr[-2000:]
        assert_equal(run, whole.run)
        assert set(rows_of(runs)) == whole.rows, "rows of an epoch differ"
    except Exception as error:  # also of a torn file, and of a process that hangs
        problem = error
    record_all("kill", f"train, {place}", kills, EQUAL, problem)
    assert kills[0], ENDED
