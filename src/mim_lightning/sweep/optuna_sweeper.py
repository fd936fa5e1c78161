"""A sweeper that searches: trials suggested by Optuna, run as jobs of Hydra.

Selected by `hydra/sweeper=optuna`. The study is stored beside the job log and outlives the process: started again, the
search resumes interrupted trials, retries those that failed, and continues to `n_trials`.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Quote, QuotedString, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mim_lightning.config import build
from mim_lightning.errors import EXTRA
from mim_lightning.sweep.job_log import JobLog, JobRecord
from mim_lightning.sweep.launcher import FaultTolerantLauncher
from mim_lightning.sweep.optuna_space import read_space, write_overrides
from mim_lightning.sweep.optuna_study import count_ended, open_study, open_trial, truncate_partial_line
from mim_lightning.sweep.sweep_id import parse_overrides, swept_keys

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial

MAX_EQUAL_FAILURES = 3  # with one reason, before any trial has finished: the next ones would fail too


class OptunaSweeper(Sweeper):
    """Runs trials until `n_trials` of them have finished or were pruned, over all starts together.

    Args:
        n_trials: number of trials.
        n_jobs: trials at a time; None: as many as the launcher runs.
        study_name, storage: see `optuna_study.open_study`; None: named as the sweep, in a journal in its folder.
        sampler, pruner: configs of Optuna's classes; pruner None prunes nothing.
        warmup_epochs: of a trial, before it may be pruned.
        params: the space, see `optuna_space`; the command line wins.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int | None,
        study_name: str | None,
        storage: str | None,
        sampler: Mapping[str, Any],
        pruner: Mapping[str, Any] | None,
        warmup_epochs: int,
        params: Mapping[str, Any] | None,  # read from the whole config, together with the command line
    ) -> None:
        self.n_trials, self.n_jobs, self.sampler, self.pruner = n_trials, n_jobs, sampler, pruner
        self.study_name, self.storage, self.warmup_epochs = study_name, storage, warmup_epochs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.composed, self.context = config, hydra_context
        folder = Path(config.hydra.sweep.dir)
        launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)
        self.fault_tolerant_launcher = FaultTolerantLauncher(launcher, folder, swept_keys(config))
        self.log = JobLog(folder)
        self.study_name = self.study_name or folder.name
        self.storage = self.storage or str(folder / "study.journal")

    def sweep(self, arguments: list[str]) -> None:
        """Ask the study for trials, launch them and report their results to it, in batches of `n_jobs`.

        Raises:
            ValueError: an option or the space is invalid, or all trials fail for the same reason.
        """
        if importlib.util.find_spec("optuna") is None:
            raise ValueError(f"hydra/sweeper=optuna: Optuna is not installed; {EXTRA}")
        batch_size = self._batch_size()
        overrides = parse_overrides(self.composed)
        space = read_space(overrides)
        fixed = [str(override.input_line) for override in overrides.values() if not override.is_sweep_override()]
        study = self._open_study()
        # samplers of a finite space call it after its last point; Optuna allows that within `study.optimize` only
        is_exhausted = threading.Event()
        study.stop = is_exhausted.set  # type: ignore[method-assign]
        interrupted = [open_trial(study, number) for number in _numbers_of(study, "RUNNING")]
        num_left = self.n_trials - count_ended(study)
        if num_left > len(interrupted):
            _queue_failed(study)
        reasons: list[str] = []
        while num_left > 0 and not is_exhausted.is_set():
            batch = [_next_trial(study, space, interrupted) for _ in range(min(num_left, batch_size))]
            jobs = [[*fixed, *write_overrides(trial.params), self._trial_override(trial)] for trial in batch]
            self.context.config_loader.load_sweep_config(self.composed, jobs[0])  # an unknown key ends the search here
            returned = self.fault_tolerant_launcher.launch(jobs, initial_job_idx=batch[0].number)
            records = {record.job: record for record in self.log.read()}
            for trial, job in zip(batch, returned, strict=True):
                reasons += _report(study, trial, job, records.get(trial.number))
            if len(reasons) >= MAX_EQUAL_FAILURES and len(set(reasons)) == 1 and not count_ended(study):
                raise ValueError(f"the first {len(reasons)} trials failed for the same reason: {reasons[0]}")
            num_left -= len(batch)
        if _numbers_of(study, "COMPLETE"):
            best = study.best_trial
            print(f"best: job {best.number}, {best.value:.3f}, {' '.join(write_overrides(best.params))}", flush=True)

    def _batch_size(self) -> int:
        for key, value in (("n_trials", self.n_trials), ("n_jobs", self.n_jobs)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"hydra.sweeper.{key}={value}: give 1 or more")
        num = self.n_jobs or int(OmegaConf.select(self.composed, "hydra.launcher.n_jobs") or 1)
        return num if num > 0 else os.cpu_count() or 1

    def _open_study(self) -> Study:
        assert self.storage is not None and self.study_name is not None
        sampler = _build_optuna("sampler", self.sampler)
        pruner = _build_optuna("pruner", self.pruner) if self.pruner is not None else None
        truncate_partial_line(self.storage)
        study = open_study(self.storage, self.study_name, sampler, pruner)
        if study.get_trials(deepcopy=False):
            study.sampler.reseed_rng()  # a seeded sampler would draw the first trials again
        return study

    def _trial_override(self, trial: Trial) -> str:
        """Return the override by which a job knows its trial."""
        config = {
            "number": trial.number,
            "study": self.study_name,
            "storage": self.storage,
            "pruner": self.pruner,
            "warmup_epochs": self.warmup_epochs,
        }
        return f"trial={Transformer.str(_quote(config))}"


def _build_optuna(kind: str, config: Mapping[str, Any]) -> Any:
    """Build a sampler or a pruner.

    Raises:
        ValueError: Optuna has none of that name, or rejects its options.
    """
    key = f"hydra.sweeper.{kind}"
    if not isinstance(config, Mapping):
        raise ValueError(f"{key}={config}: give its class, as {key}._target_=optuna.{kind}s.<name>")
    target = str(config.get("_target_"))
    module, _, name = target.rpartition(".")
    known = importlib.import_module(f"optuna.{kind}s").__all__
    if module in ("", f"optuna.{kind}s") and name not in known:
        close = difflib.get_close_matches(name, known, 1)
        raise ValueError(
            f"{key}._target_={target}: Optuna has no such {kind}; "
            + (f"did you mean 'optuna.{kind}s.{close[0]}'?" if close else f"there are {', '.join(known)}")
        )
    return build(config)


def _quote(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _quote(part) for key, part in value.items()}
    return QuotedString(value, Quote.single) if isinstance(value, str) else value


def _numbers_of(study: Study, state: str) -> list[int]:
    return [trial.number for trial in study.get_trials(deepcopy=False) if trial.state.name == state]


def _queue_failed(study: Study) -> None:
    """Queue each trial that failed, and was not retried yet, for another try."""
    trials = study.get_trials(deepcopy=False)
    states = [(trial.state.name, trial.params or trial.system_attrs.get("fixed_params", {})) for trial in trials]
    tried = {json.dumps(params, sort_keys=True) for state, params in states if state != "FAIL"}
    for state, params in states:
        key = json.dumps(params, sort_keys=True)
        if state == "FAIL" and params and key not in tried:
            tried.add(key)
            study.enqueue_trial(params)


def _next_trial(study: Study, space: Mapping[str, BaseDistribution], interrupted: list[Trial]) -> Trial:
    from optuna.trial import TrialState

    while interrupted:
        trial = interrupted.pop(0)
        if set(trial.params) == set(space):
            return trial
        study.tell(trial, state=TrialState.FAIL)  # interrupted before all of its parameters were drawn
    return study.ask(fixed_distributions=dict(space))


def _report(study: Study, trial: Trial, job: JobReturn, record: JobRecord | None) -> list[str]:
    """Report to the study how a trial ended; return the reason if it failed."""
    from optuna.trial import TrialState

    value = float(job.return_value)
    if math.isfinite(value):
        study.tell(trial, value)
    elif record is not None and record.status == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, state=TrialState.FAIL)
        return [record.reason if record is not None else ""]
    return []
