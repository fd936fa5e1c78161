"""A launcher that continues when the process of a job dies, killed or out of memory or time.

A job that fails records that itself. One that dies takes the return values of its whole batch with it: they are read
from the job log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from mim_lightning.errors import is_user_error
from mim_lightning.interruption import Interruption
from mim_lightning.sweep.job_log import RUNNING, JobLog, JobRecord
from mim_lightning.sweep.summary import print_summary
from mim_lightning.sweep.sweep_id import pick_overrides

# what joblib and submitit raise for a process that ended without a result, by name: neither need be installed
DEATHS = ("TerminatedWorkerError", "BrokenProcessPool", "UncompletedJobError", "FailedJobError")


class FaultTolerantLauncher(Launcher):
    """Launches with another launcher, and returns nan for a job that died."""

    def __init__(self, launcher: Launcher, folder: Path, keys: Sequence[str]) -> None:
        self.launcher, self.log = launcher, JobLog(folder, keys)

    def setup(self, **_: Any) -> None:
        """Do nothing: the wrapped launcher is set up already."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        try:
            return self.launcher.launch(job_overrides, initial_job_idx)
        except Interruption:
            print_summary(self.log)
            raise
        except Exception as error:
            first_line = next(iter(str(error).splitlines()), "")
            if type(error).__name__ in DEATHS:
                reason = f"its process, or that of a job beside it, died: {type(error).__name__} {first_line}"
            elif isinstance(error, RuntimeError) and not is_user_error(error):  # for example, no scheduler
                raise ValueError(f"hydra/launcher: {first_line}") from error
            else:
                raise
        return [self._look_up(overrides, initial_job_idx + idx, reason) for idx, overrides in enumerate(job_overrides)]

    def _look_up(self, overrides: Sequence[str], number: int, reason: str) -> JobReturn:
        varied = pick_overrides(overrides, self.log.keys)
        job = next((job for job in self.log.read() if job.overrides == varied), JobRecord(number, varied, RUNNING))
        if job.status == RUNNING:
            job = replace(job, status="failed", reason=reason)
            self.log.write(job)
        value = job.results.get(job.monitor, float("nan"))
        return JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED, _return_value=value)
