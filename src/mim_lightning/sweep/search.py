"""A search: trials that learn from each other, asked of Optuna and run as jobs of Hydra's.

`hydra/sweeper=optuna` names it. The study lies beside the ledger and outlives the process: started again, the search
takes up the trials that were interrupted, tries those that failed once more, and goes on to `n_trials`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Quote, QuotedString, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mim_lightning.sweep.identity import parse_overrides, swept_keys
from mim_lightning.sweep.launching import SturdyLauncher
from mim_lightning.sweep.ledger import Ledger, Row
from mim_lightning.sweep.optuna_study import count_ended, mend_journal, open_study, open_trial
from mim_lightning.sweep.parts import build_part, check_installed
from mim_lightning.sweep.space import read_space, write_overrides

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial

ALIKE = 3  # so many failures for one reason, and no trial yet that finished: the next would fail too


class TrialSearch(Sweeper):
    """Runs trials until `n_trials` of them have finished or were pruned, over all starts together.

    Args:
        n_trials: how many.
        n_jobs: at a time; None: as many as the launcher runs.
        study_name, storage: see `optuna_study.open_study`; None: named like the sweep, in a journal in its folder.
        sampler, pruner: Optuna's, as configs; pruner None prunes nothing.
        warmup_epochs: that every trial gets, before it may be pruned.
        params: the space, see `space`; the command line prevails.
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
        params: Mapping[str, Any] | None,  # read from the whole config, with the command line's
    ) -> None:
        self.n_trials, self.n_jobs, self.sampler, self.pruner = n_trials, n_jobs, sampler, pruner
        self.study_name, self.storage, self.warmup_epochs = study_name, storage, warmup_epochs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.composed, self.context = config, hydra_context
        folder = Path(config.hydra.sweep.dir)
        launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)
        self.sturdy = SturdyLauncher(launcher, folder, swept_keys(config))
        self.ledger = Ledger(folder)
        self.study_name = self.study_name or folder.name
        self.storage = self.storage or str(folder / "study.journal")

    def sweep(self, arguments: list[str]) -> None:
        """Ask, launch and tell, in batches of `n_jobs` trials.

        Raises:
            ValueError: an option that cannot be, a space that is none, or trials that all fail alike.
        """
        check_installed()
        num_at_once = self._num_at_once()
        overrides = parse_overrides(self.composed)
        space = read_space(overrides)
        fixed = [str(override.input_line) for override in overrides.values() if not override.is_sweep_override()]
        study = self._open()
        interrupted = [open_trial(study, number) for number in _numbers_of(study, "RUNNING")]
        num_left = self.n_trials - count_ended(study)
        if num_left > len(interrupted):
            _queue_failed(study)
        reasons: list[str] = []
        while num_left > 0:
            batch = [_next_trial(study, space, interrupted) for _ in range(min(num_left, num_at_once))]
            jobs = [[*fixed, *write_overrides(trial.params), self._name_trial(trial)] for trial in batch]
            self.context.config_loader.load_sweep_config(self.composed, jobs[0])  # a key that is none ends it all here
            returned = self.sturdy.launch(jobs, initial_job_idx=batch[0].number)
            rows = {row.job: row for row in self.ledger.read()}
            for trial, job in zip(batch, returned, strict=True):
                reasons += _tell(study, trial, job, rows.get(trial.number))
            if len(reasons) >= ALIKE and len(set(reasons)) == 1 and not count_ended(study):
                raise ValueError(f"the first {len(reasons)} trials failed alike: {reasons[0]}")
            num_left -= len(batch)
        _print_best(study)

    def _num_at_once(self) -> int:
        for key, value in (("n_trials", self.n_trials), ("n_jobs", self.n_jobs)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"hydra.sweeper.{key}={value}: give 1 or more")
        num = self.n_jobs or int(OmegaConf.select(self.composed, "hydra.launcher.n_jobs") or 1)
        return num if num > 0 else os.cpu_count() or 1

    def _open(self) -> Study:
        assert self.storage is not None and self.study_name is not None
        sampler = build_part("sampler", self.sampler)
        pruner = build_part("pruner", self.pruner) if self.pruner is not None else None
        mend_journal(self.storage)
        study = open_study(self.storage, self.study_name, sampler, pruner)
        if study.get_trials(deepcopy=False):
            study.sampler.reseed_rng()  # a seeded sampler would draw the first trials again
        return study

    def _name_trial(self, trial: Trial) -> str:
        """Return the override that tells a job which trial it is."""
        facts = {
            "number": trial.number,
            "study": self.study_name,
            "storage": self.storage,
            "pruner": self.pruner,
            "warmup_epochs": self.warmup_epochs,
        }
        return f"trial={Transformer.str(_quoted(facts))}"


def _quoted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _quoted(part) for key, part in value.items()}
    return QuotedString(value, Quote.single) if isinstance(value, str) else value


def _numbers_of(study: Study, state: str) -> list[int]:
    return [trial.number for trial in study.get_trials(deepcopy=False) if trial.state.name == state]


def _queue_failed(study: Study) -> None:
    """Queue each trial that failed, and has not been tried again, for another try."""
    trials = study.get_trials(deepcopy=False)
    fates = [(trial.state.name, trial.params or trial.system_attrs.get("fixed_params", {})) for trial in trials]
    tried = {json.dumps(params, sort_keys=True) for state, params in fates if state != "FAIL"}
    for state, params in fates:
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
        study.tell(trial, state=TrialState.FAIL)  # the end came before all of its parameters
    return study.ask(fixed_distributions=dict(space))


def _tell(study: Study, trial: Trial, job: JobReturn, row: Row | None) -> list[str]:
    """Tell the study how a trial ended; return the reason if it failed."""
    from optuna.trial import TrialState

    value = float(job.return_value)
    if math.isfinite(value):
        study.tell(trial, value)
    elif row is not None and row.status == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, state=TrialState.FAIL)
        return [row.reason if row is not None else ""]
    return []


def _print_best(study: Study) -> None:
    if _numbers_of(study, "COMPLETE"):
        best = study.best_trial
        print(f"best: job {best.number}, {best.value:.3f}, {' '.join(write_overrides(best.params))}", flush=True)
