"""The end of a multirun: one table of all its jobs.

Hydra tells of each job's config and return; the recorded results are read from the runs' folders. Named in
conf/train.yaml, called by Hydra.
"""

from __future__ import annotations

from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from mim_lightning.config import to_plain
from mim_lightning.run import identify


class SweepTable(Callback):
    """Collects the jobs of a multirun and prints their results side by side."""

    def __init__(self) -> None:
        self.jobs: list[tuple[list[str], dict[str, Any]]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if job_return.status == JobStatus.COMPLETED and job_return.overrides is not None:
            own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
            self.jobs.append((list(job_return.overrides), to_plain(own)))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        from mim_lightning.lit.report import print_comparison

        runs = []
        shared = set.intersection(*(set(overrides) for overrides, _ in self.jobs)) if self.jobs else set()
        for overrides, job in self.jobs:
            results = identify(job)[0].read_results()
            if results is not None:
                runs.append((" ".join(word for word in overrides if word not in shared), results))
        if runs:
            print_comparison(f"{len(runs)} jobs", runs)
