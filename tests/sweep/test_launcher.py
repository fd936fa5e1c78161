"""A batch in which a process died: the results of the others are kept, and the sweep continues."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from mim_lightning.sweep.job_log import JobLog, JobRecord
from mim_lightning.sweep.launcher import FaultTolerantLauncher

TerminatedWorkerError = type("TerminatedWorkerError", (RuntimeError,), {})  # joblib's, by its name


class Raising(Launcher):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def setup(self, **_: Any) -> None:
        pass

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise self.error


def test_jobs_that_died_are_distinguished_from_those_that_finished(tmp_path: Path) -> None:
    log = JobLog(tmp_path, ["seed"])
    log.write(JobRecord(3, {"seed": "1"}, "finished", "run-1", "val/a/hit@1", {"val/a/hit@1": 0.5}))
    log.write(JobRecord(4, {"seed": "2"}, "running", "run-2", was_resumed=True))
    launcher = FaultTolerantLauncher(Raising(TerminatedWorkerError("a worker\nwas killed")), tmp_path, ["seed"])
    returned = launcher.launch([["seed=1"], ["seed=2", "a=b"], ["seed=3"]], initial_job_idx=3)
    assert returned[0].return_value == 0.5
    assert all(math.isnan(job.return_value) for job in returned[1:])
    records = log.read()
    assert [(record.job, record.status, record.run_id) for record in records] == [
        (3, "finished", "run-1"),
        (4, "failed", "run-2"),
        (5, "failed", ""),
    ]
    reason = records[1].reason
    assert records[1].was_resumed and "TerminatedWorkerError a worker" in reason and "\n" not in reason


def test_a_launcher_that_cannot_start_says_so(tmp_path: Path) -> None:
    launcher = FaultTolerantLauncher(Raising(RuntimeError('Could not detect "srun"')), tmp_path, [])
    with pytest.raises(ValueError, match='hydra/launcher: Could not detect "srun"'):
        launcher.launch([[]], 0)


@pytest.mark.parametrize("error", [ValueError("no such key"), TypeError("a fault of ours")])
def test_other_errors_are_left_alone(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        FaultTolerantLauncher(Raising(error), tmp_path, []).launch([[]], 0)
