"""Sweeps that are killed anywhere: finished jobs are kept, and the others resumed, with the results of one go."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from mim_lightning.run import Run
from tests.campaign.kills import ENDED, kill_somewhere
from tests.campaign.outcomes import points, record_all
from tests.campaign.processes import EntryPoint
from tests.campaign.sweeps import KINDS, WholeSweep, jobs_of
from tests.campaign.training import assert_equal, assert_nothing_torn

pytest.importorskip("optuna", reason="needs the extra: pip install 'mim-lightning[sweep]'")


@pytest.mark.parametrize("rng", points("sweep", 8, 0))
def test_sweep(rng: random.Random, sweeps: WholeSweep, tmp_path: Path) -> None:
    kind = rng.choice(list(KINDS))
    runs, whole = tmp_path / "runs", sweeps.runs(kind)
    words = sweeps.command(kind, runs)
    start = partial(EntryPoint, "train", words, tmp_path / "scratch", [runs])
    kills, problem = [], None
    try:
        for _ in range(rng.choice([1, 2])):
            kills.append(kill_somewhere(rng, start, sweeps.events[kind], {"main": sweeps.cpu[kind]}, runs))
            assert_nothing_torn(runs)
        finished = {path: path.stat().st_mtime_ns for path in runs.glob("*/results.json")}
        last = EntryPoint("train", words, tmp_path / "scratch")
        assert last.wait() == 0, last.stderr[-2000:]
        assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished job ran again"
        jobs, expected = jobs_of(runs), jobs_of(whole)
        assert [job["status"] for job in jobs] == ["finished"] * 2
        assert [job["run_id"] for job in jobs] == [job["run_id"] for job in expected], "other jobs"
        for job in jobs:
            assert_equal(Run(job["run_id"], runs / job["run_id"]), Run(job["run_id"], whole / job["run_id"]))
    except Exception as error:  # also of a torn file, and of a process that hangs
        problem = error
    record_all("kill", kind, kills, "finished jobs kept, the others resumed: results of one go", problem)
    assert kills[0], ENDED
