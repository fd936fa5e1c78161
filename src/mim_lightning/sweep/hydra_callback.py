"""Hydra callback of a multirun: locks the sweep's folder, logs how each job ends, prints the summary.

Named in conf/train.yaml. Hydra calls it in the process of the sweep and in those of its jobs, with every launcher.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from mim_lightning.config import to_plain
from mim_lightning.errors import ErrorReport, to_error_report, write_note
from mim_lightning.io.locks import describe_holder, release, try_lock
from mim_lightning.next_command import print_next
from mim_lightning.run import Run, identify
from mim_lightning.sweep.job_log import FINISHED, RUNNING, JobLog, JobRecord
from mim_lightning.sweep.summary import average_seeds, print_summary
from mim_lightning.sweep.sweep_id import (
    PENDING_NAME,
    name_sweep,
    own_config,
    pick_overrides,
    swept_keys,
    use_present_params,
)

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
MAX_COMPARED = 12  # runs of a sweep that are named in one line
GRID_SWEEPER = "hydra_plugins.mim_lightning_sweepers.GridSweeper"


def _ends_sweep(hook: Callable[..., None]) -> Callable[..., None]:
    """End the sweep where its log cannot be written or read: without it, jobs that failed would end in 0."""

    @wraps(hook)
    def call(*arguments: Any, **options: Any) -> None:
        try:
            hook(*arguments, **options)
        except OSError as error:
            _exit(to_error_report(error, "train").reason)

    return call


class SweepLog(Callback):
    """Logs how each job of a multirun ends; does nothing in a single run."""

    def __init__(self) -> None:
        self.log: JobLog | None = None
        self._unlock: weakref.finalize | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with open_dict(config):
            use_present_params(config)
        folder = Path(str(config.hydra.sweep.dir).replace(PENDING_NAME, name_sweep(config))).absolute()
        try:
            lock = try_lock(folder / ".lock", timeout=20)  # processes of a killed sweep end a moment later
        except OSError as error:
            _exit(f"hydra.sweep.dir={folder}: {error.strerror}")
        if lock is None:
            _exit(f"{folder}: this sweep is already running: {describe_holder(folder / '.lock')}")
        self._unlock = weakref.finalize(self, release, lock)  # Hydra has no hook for a sweep that is aborted
        with open_dict(config):
            # the sweeper is made from this config after this call
            if config.hydra.sweeper._target_ == BASIC_SWEEPER:
                config.hydra.sweeper._target_ = GRID_SWEEPER
            config.hydra.sweep.dir = str(folder)
            # jobs are composed again, from these overrides
            text = QuotedString(str(folder), Quote.single).with_quotes()
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={text}")
        self.log = JobLog(folder, swept_keys(config))

    @_ends_sweep
    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if self.log is None:
            return
        run, job = _identify_job(config, self.log)
        print(f"job {job.job}: {job.label}", flush=True)
        if run is not None and run.read_results() is None:
            self.log.write(replace(job, status=RUNNING, was_resumed=run.last_checkpoint.exists()))

    @_ends_sweep
    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if self.log is None:
            return
        run, job = _identify_job(config, self.log)
        results = run.read_results() if run is not None else None
        end = job_return.return_value
        if not isinstance(end, ErrorReport) and results is None:
            end = ErrorReport("RuntimeError", "ended without results")
        if isinstance(end, ErrorReport):
            job_return.return_value = float("nan")  # means "no result" to the sweeper
            label = "error" if end.status == "failed" else end.status
            print(f"{label}: job {job.job}: {end.reason}", file=sys.stderr, flush=True)
            if run is not None:
                write_note(run.folder, end)
            job = replace(job, status=end.status, reason=end.reason)
        else:
            job = replace(job, status=FINISHED, results=results or {})
        self.log.write(job)

    @_ends_sweep
    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        assert self.log is not None and self._unlock is not None
        jobs = print_summary(self.log)
        self._unlock()
        if any(job.status == "failed" for job in jobs):
            sys.exit(1)  # not an exception: Hydra turns a callback's exception into a warning
        finished = [job for job in jobs if job.status == FINISHED]
        folders = [Path(str(config.paths.runs)) / job.run_id for job in finished]
        settings = average_seeds([(job.overrides, {}) for job in finished])  # runs of one are not compared
        if len(settings) > 1 and len(folders) <= MAX_COMPARED and all(folder.is_dir() for folder in folders):
            print_next("compare", *folders)
        else:
            print_next("runs", config.paths.runs)


def _identify_job(config: DictConfig, log: JobLog) -> tuple[Run | None, JobRecord]:
    """Return a job's run, or None if its config is invalid, and what is known of the job so far."""
    number = int(config.hydra.job.num if config.trial is None else config.trial.number)
    job = JobRecord(number, pick_overrides(config.hydra.overrides.task, log.keys), status="")
    try:
        run, own, _ = identify(to_plain(own_config(config)))
    except Exception:  # the job itself reports it
        return None, job
    before = log.find(run.run_id)
    was_resumed = before is not None and before.was_resumed
    return run, replace(job, run_id=run.run_id, monitor=own["monitor"], was_resumed=was_resumed)


def _exit(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
