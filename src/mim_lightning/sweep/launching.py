"""A launcher that goes on when a job dies: its process killed, for want of memory or of time.

Any of Hydra's launchers comes in, one with more patience comes out. A job that fails says so itself; one that dies
takes the answers of its whole batch with it, and they are looked up in the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from mim_lightning.errors import is_mendable
from mim_lightning.interruption import Interruption
from mim_lightning.sweep.identity import pick_overrides
from mim_lightning.sweep.ledger import RUNNING, Ledger, Row
from mim_lightning.sweep.table import print_ledger

# joblib's and submitit's words for a process that ended without an answer; neither need be installed
DEATHS = ("TerminatedWorkerError", "BrokenProcessPool", "UncompletedJobError", "FailedJobError")


class SturdyLauncher(Launcher):
    """Launches as `launcher` does, and returns nan for a job that died."""

    def __init__(self, launcher: Launcher, folder: Path, keys: Sequence[str]) -> None:
        self.launcher, self.ledger = launcher, Ledger(folder, keys)

    def setup(self, **_: Any) -> None:
        """Nothing is left to do: the launcher inside was set up when it was made."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        try:
            return self.launcher.launch(job_overrides, initial_job_idx)
        except Interruption:
            print_ledger(self.ledger)
            raise
        except Exception as error:
            first_line = next(iter(str(error).splitlines()), "")
            if type(error).__name__ in DEATHS:
                reason = f"its process died, or that of another job at the time: {type(error).__name__} {first_line}"
            elif isinstance(error, RuntimeError) and not is_mendable(error):  # no scheduler here, for one
                raise ValueError(f"hydra/launcher: {first_line}") from error
            else:
                raise
        return [self._look_up(overrides, initial_job_idx + idx, reason) for idx, overrides in enumerate(job_overrides)]

    def _look_up(self, overrides: Sequence[str], job: int, reason: str) -> JobReturn:
        varied = pick_overrides(overrides, self.ledger.keys)
        row = next((row for row in self.ledger.read() if row.overrides == varied), Row(job, varied, RUNNING))
        if row.status == RUNNING:
            row = replace(row, status="failed", reason=reason)
            self.ledger.write(row)
        value = row.results.get(row.monitor, float("nan"))
        return JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED, _return_value=value)
