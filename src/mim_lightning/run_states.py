"""What the runs in a folder have come to: state, epochs, monitored metric, and the command that goes on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mim_lightning.config import load_stored_config
from mim_lightning.display.numbers import format_number
from mim_lightning.display.text import plain
from mim_lightning.errors import read_note
from mim_lightning.interruption import STOPPED_AFTER
from mim_lightning.io.locks import is_locked
from mim_lightning.run import Run

RUNNING, FINISHED, OUT_OF_TIME, STOPPED, DAMAGED = "running", "finished", "out of time", "stopped", "damaged"
FILES = (
    "config.yaml",
    "failed.json",
    "pruned.json",
)  # one of them makes a folder that of a run, or a lock that is held
NOTHING = "-"
MAX_TIME = "trainer.max_time="


@dataclass(frozen=True)
class RunState:
    """A run as its folder tells it."""

    run: Run
    state: str  # one of the above, or "failed" or "pruned"
    changed: datetime
    reason: str = ""  # of a run that failed, was pruned or is damaged: one line
    epochs: tuple[int, int] | None = None  # trained, and wanted
    monitor: str = ""
    best: float | None = None  # of the reported checkpoint, or so far

    @property
    def next_command(self) -> str | None:
        """The command that goes on, for a shell; None of a run that is done or runs, or whose command is not known."""
        if self.state in (RUNNING, FINISHED) or not self.run.command_path.is_file():
            return None
        words = shlex.split(self.run.command_path.read_text("utf-8", errors="replace"), comments=False)
        given = [word for word in words if self.state != OUT_OF_TIME or MAX_TIME not in word]
        return plain(shlex.join(given), max_chars=10_000)


def read_states(folder: Path) -> list[RunState]:
    """Return the runs in a folder, the latest first.

    Raises:
        ValueError: it is no folder, or has no runs.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; give the one that runs were written to (paths.runs)")
    found = {path.parent for name in FILES for path in folder.glob(f"*/{name}")}
    found |= {path.parent for path in folder.glob("*/.lock") if is_locked(path)}
    if not found:
        raise ValueError(f"{folder}: has no runs; `mim train paths.runs={folder}` writes there")
    states = (_read_state(Run(path.name, path)) for path in sorted(found))
    return sorted(states, key=lambda state: state.changed, reverse=True)


def print_states(states: Sequence[RunState]) -> None:
    """Print a table of runs, at most as wide as the terminal, and the commands that go on."""
    monitors = sorted({state.monitor for state in states if state.monitor})
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("state", "epochs", "best", "changed"):
        table.add_column(name, justify="right" if name == "epochs" else "left")
    for state in states:
        epochs = NOTHING if state.epochs is None else "{}/{}".format(*state.epochs)
        value = NOTHING if state.best is None else format_number(state.best)
        named = f"{value} {state.monitor.removeprefix('val/')}" if len(monitors) > 1 and state.monitor else value
        day = "%d %b %H:%M" if state.changed.year == datetime.now().year else "%d %b %Y"
        cells = (plain(state.run.run_id), state.state, epochs, named, state.changed.strftime(day))
        table.add_row(*map(escape, cells))
    Console().print(table)
    if len(monitors) == 1:
        print(f"best: {monitors[0]}, of the reported checkpoint or so far")
    for state in states:
        if state.reason:
            print(f"{plain(state.run.run_id)}: {plain(state.reason, max_chars=1_000)}")
    waiting = [(state, state.next_command) for state in states]
    if commands := [(state, command) for state, command in waiting if command]:
        print("to go on:")
        for _, command in commands:
            print(f"  {command}")
    if any(state.state in (STOPPED, OUT_OF_TIME) and command is None for state, command in waiting):
        print("a stopped run without a command here goes on by the command or call that started it")


def _read_state(run: Run) -> RunState:
    from mim_lightning.analysis.figures.training_log import read_log

    changed = datetime.fromtimestamp(_last_change(run.folder))
    note = read_note(run.folder)
    state = RUNNING if is_locked(run.lock_path) else note.status if note else STOPPED
    reason = note.reason if note and state != RUNNING else ""
    if not run.config_path.exists():
        return RunState(run, state, changed, reason)
    try:
        config = load_stored_config(run.config_path)
        results = run.read_results()
        by_epoch = read_log(run.folder).by_epoch if any(run.folder.glob("csv/version_*/metrics.csv")) else {}
    except ValueError as error:
        return RunState(run, DAMAGED, changed, " ".join(str(error).split()))
    monitor = str(config.get("monitor", ""))
    trained = {epoch: value for epoch, value in by_epoch.get(monitor, {}).items() if epoch >= 0}
    wanted = config.get("trainer", {}).get("max_epochs")
    if results is not None and state != RUNNING:
        state = OUT_OF_TIME if STOPPED_AFTER in results else FINISHED
    best = (results or {}).get(monitor, max(trained.values(), default=None))
    epochs = (max(trained, default=-1) + 1, wanted) if isinstance(wanted, int) else None
    return RunState(run, state, changed, "" if state == FINISHED else reason, epochs, monitor, best)


def _last_change(folder: Path) -> float:
    """Return when a run last wrote: what a look at the folder or a copied lock changes does not count."""
    names = ("results.json", "failed.json", "checkpoints", "csv", "config.yaml")
    paths = [folder, *(folder / name for name in names), *folder.glob("csv/version_*/metrics.csv")]
    found = [os.stat(path).st_mtime for path in paths[1:] if path.exists()]
    return max(found or [folder.stat().st_mtime])
