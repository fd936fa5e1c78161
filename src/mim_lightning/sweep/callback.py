"""What a sweep does around its jobs: keeps the ledger, prints the table.

Named in conf/train.yaml and called by Hydra, in the process of the sweep and in those of its jobs: whatever launcher
starts these, the callback travels with them.
"""

from __future__ import annotations

import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from mim_lightning.config import to_plain
from mim_lightning.errors import Failure, write_note
from mim_lightning.io.locks import describe_holder, release, try_lock
from mim_lightning.run import Run, identify
from mim_lightning.sweep.identity import PENDING_NAME, name_sweep, own_config, pick_overrides, swept_keys
from mim_lightning.sweep.ledger import FINISHED, RUNNING, Ledger, Row
from mim_lightning.sweep.table import print_ledger

HYDRAS_OWN = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
OURS = "hydra_plugins.mim_lightning_sweepers.GridSweeper"


class SweepLedger(Callback):
    """Writes down how each job of a multirun ends; does nothing in a single run."""

    def __init__(self) -> None:
        self.ledger: Ledger | None = None
        self._let_go: weakref.finalize | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(str(config.hydra.sweep.dir).replace(PENDING_NAME, name_sweep(config))).absolute()
        try:
            held = try_lock(folder / ".lock", timeout=20)  # what a killed sweep forked ends a moment later
        except OSError as error:
            _stop(f"hydra.sweep.dir={folder}: {error.strerror}")
        if held is None:
            _stop(f"{folder}: this sweep is running already: {describe_holder(folder / '.lock')}")
        self._let_go = weakref.finalize(self, release, held)  # no hook tells of a sweep that broke off
        with open_dict(config):
            # this config makes the sweeper, which is made after this
            if config.hydra.sweeper._target_ == HYDRAS_OWN:
                config.hydra.sweeper._target_ = OURS
            config.hydra.sweep.dir = str(folder)
            # jobs compose anew, and from this
            text = QuotedString(str(folder), Quote.single).with_quotes()
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={text}")
        self.ledger = Ledger(folder, swept_keys(config))

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if self.ledger is None:
            return
        run, row = _describe(config, self.ledger)
        print(f"job {row.job}: {row.label}", flush=True)
        if run is not None and run.read_results() is None:
            self.ledger.write(replace(row, status=RUNNING, was_resumed=run.last_checkpoint.is_file()))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if self.ledger is None:
            return
        run, row = _describe(config, self.ledger)
        results = run.read_results() if run is not None else None
        end = job_return.return_value
        if not isinstance(end, Failure) and results is None:
            end = Failure("RuntimeError", "came to its end and left no results")
        if isinstance(end, Failure):
            job_return.return_value = float("nan")  # the sweeper's word for no result
            label = "error" if end.status == "failed" else end.status
            print(f"{label}: job {row.job}: {end.reason}", file=sys.stderr, flush=True)
            if run is not None:
                write_note(run.folder, end)
            row = replace(row, status=end.status, reason=end.reason)
        else:
            row = replace(row, status=FINISHED, results=results or {})
        self.ledger.write(row)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        assert self.ledger is not None and self._let_go is not None
        rows = print_ledger(self.ledger)
        self._let_go()
        if any(row.status == "failed" for row in rows):
            sys.exit(1)  # an exit, for Hydra makes a warning of a callback's exception


def _describe(config: DictConfig, ledger: Ledger) -> tuple[Run | None, Row]:
    """Return a job's run, or None where the config makes none, and its row as far as it is known."""
    row = Row(_job_number(config), pick_overrides(config.hydra.overrides.task, ledger.keys), status="")
    try:
        run, own = identify(to_plain(own_config(config)))
    except Exception:  # the job itself will say so
        return None, row
    before = ledger.find(run.run_id)
    was_resumed = before is not None and before.was_resumed
    return run, replace(row, run_id=run.run_id, monitor=own["monitor"], was_resumed=was_resumed)


def _job_number(config: DictConfig) -> int:
    return int(config.hydra.job.num if config.trial is None else config.trial.number)


def _stop(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
