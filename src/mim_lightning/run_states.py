"""What the runs in a folder have come to: state, epochs, monitored metric, and the command that goes on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from pathlib import Path, PurePath

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mim_lightning.cli import DATA_VARIABLES, as_override
from mim_lightning.config import load_stored_config
from mim_lightning.display.numbers import format_number
from mim_lightning.display.text import plain
from mim_lightning.errors import NOTES, read_note
from mim_lightning.interruption import STOPPED_AFTER
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.io.locks import is_locked
from mim_lightning.next_command import program
from mim_lightning.run import Run

RUNNING, FINISHED, OUT_OF_TIME, STOPPED = "running", "finished", "out of time", "stopped"
FAILED, PRUNED = NOTES
DAMAGED, UNKNOWN = "damaged", "unknown"
STATES = (RUNNING, FINISHED, OUT_OF_TIME, STOPPED, FAILED, PRUNED, DAMAGED, UNKNOWN)
FILES = ("config.yaml", *NOTES.values())  # one of them, or a lock that is held, makes a run's folder
NOTHING = "-"
MAX_TIME, RUNS = "trainer.max_time=", "paths.runs="


@dataclass(frozen=True)
class RunState:
    """A run as its folder tells it."""

    run: Run
    state: str  # one of STATES
    changed: datetime
    reason: str = ""  # of a run that failed, was pruned or is damaged: one line
    epochs: tuple[int, int | None] | None = None  # trained, and wanted where there is a limit
    monitor: str = ""
    best: float | None = None  # of the reported checkpoint, or so far
    next_command: str | None = None  # that goes on, for a shell; None where there is none, or it is not known


def read_states(folder: Path) -> list[RunState]:
    """Return the runs in a folder, the latest first.

    Raises:
        ValueError: it is no folder, or has no runs.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: there is no such folder; `mim train` writes one, or give that of other runs (paths.runs)"
        )
    found = {path.parent for name in FILES for path in folder.glob(f"*/{name}")}
    found |= {path.parent for path in folder.glob("*/.lock") if _is_locked(path)}
    if not found:
        raise ValueError(f"{folder}: has no runs; `mim train paths.runs={folder}` writes there")
    states = (read_state(Run(path.name, path)) for path in sorted(found))
    return sorted(states, key=lambda state: state.changed, reverse=True)


def print_states(states: Sequence[RunState]) -> None:
    """Print a table of runs, at most as wide as the terminal, and the commands that go on."""
    monitors = sorted({state.monitor for state in states if state.monitor})
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("state", "epochs", "best", "changed"):
        table.add_column(name, justify="right" if name == "epochs" else "left")
    for state in states:
        epochs = NOTHING if state.epochs is None else f"{state.epochs[0]}/{state.epochs[1] or NOTHING}"
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


def best_checkpoint(states: Sequence[RunState]) -> Path | None:
    """Return the checkpoint of the best finished run; None: there is none, or they do not have one monitored metric."""
    has_result = [state for state in states if state.state == FINISHED and state.best is not None]
    found = [state for state in has_result if state.run.best_checkpoint.exists()]
    if len({state.monitor for state in found}) != 1:
        return None
    return max(found, key=lambda state: state.best or 0.0).run.best_checkpoint


def read_state(run: Run) -> RunState:
    """Return what one run has come to."""
    try:
        return _read_files(run)
    except (ValueError, OSError) as error:
        state = RUNNING if _is_locked(run.lock_path) else DAMAGED
        return RunState(run, state, _last_change(run), " ".join(str(error).split()))


def _read_files(run: Run) -> RunState:
    from mim_lightning.analysis.figures.training_log import read_log

    is_held, note, changed = _is_locked(run.lock_path), read_note(run.folder), _last_change(run)
    state = RUNNING if is_held else note.status if note else STOPPED if is_held is False else UNKNOWN
    reason = note.reason if note and state != RUNNING else ""
    if not run.config_path.exists():
        return RunState(run, state, changed, reason, next_command=_next_command(run, state, run.folder.parent))
    config = load_stored_config(run.config_path)
    with errors_as_damaged_file(run.config_path):
        monitor, wanted = str(config.get("monitor", "")), config.get("trainer", {}).get("max_epochs")
        # run.name may have folders in it
        runs_folder = run.folder.parents[len(PurePath(str(config["run"].get("id", "one"))).parts) - 1]
    results = run.read_results()
    if results is not None and state != RUNNING:
        is_early = STOPPED_AFTER in results
        # a run that went on with more time may have failed before its results were removed
        if not (is_early and note and _mtime(run.folder / NOTES[note.status]) > _mtime(run.results_path)):
            state, reason = OUT_OF_TIME if is_early else FINISHED, ""
    logged = any(run.folder.glob("csv/version_*/metrics.csv"))
    log = read_log(run.folder, [monitor]) if logged else None
    by_epoch, by_pass = (log.by_epoch.get(monitor, {}), log.by_pass.get(monitor, {})) if log else ({}, {})
    trained = {epoch: value for epoch, value in by_epoch.items() if epoch >= 0}
    passes = [value for steps, value in by_pass.items() if steps > 0]
    best = (results or {}).get(monitor, max([*passes, *trained.values()], default=None))
    epochs = max(trained, default=-1) + 1, wanted if isinstance(wanted, int) and wanted >= 0 else None
    return RunState(run, state, changed, reason, epochs, monitor, best, _next_command(run, state, runs_folder))


def _next_command(run: Run, state: str, runs_folder: Path) -> str | None:
    """Return the command that goes on with a run; None: there is none, or it is not known."""
    if state not in (STOPPED, OUT_OF_TIME, FAILED):
        return None
    return command_of(run, runs_folder, [f"{MAX_TIME}null"] if state == OUT_OF_TIME else [])


def command_of(run: Run, runs_folder: Path, changes: Sequence[str] = ()) -> str | None:
    """Return the command of a run, for a shell in this folder and environment; None if it is not known.

    Args:
        runs_folder: the value of paths.runs with which the command finds the run.
        changes: overrides to give instead of those of the same keys.
    """
    if not run.command_path.is_file():
        return None
    with errors_as_damaged_file(run.command_path):
        words = shlex.split(run.command_path.read_text("utf-8"), comments=False)
    here = Path.cwd()
    folder = here
    if words[:1] == ["cd"] and words[2:3] == ["&&"]:
        folder, words = Path(words[1]), words[3:]
    given = list(takewhile(lambda word: word.partition("=")[0] in DATA_VARIABLES, words))
    words = words[len(given) :]
    if words[:2] != ["mim", "train"] or any(word.lstrip("+").startswith("trial=") for word in words):
        return None
    changed = {change.partition("=")[0] for change in changes}
    words = [*(word for word in words if word.lstrip("+").partition("=")[0] not in changed), *changes]
    # the same folder of runs, or the command would train from the start
    named = [word.removeprefix(RUNS) for word in words if word.startswith(RUNS)]
    found = folder / (named[-1] if named else os.environ.get("MIM_RUNS_DIR", "runs"))
    if found.resolve() != runs_folder.resolve() and not any(word.startswith("run.folder=") for word in words):
        place = runs_folder if folder == here else runs_folder.resolve()
        words = [word for word in words if not word.startswith(RUNS)]
        words.append(as_override("paths.runs", place))
    variables = (word.partition("=") for word in given)
    set_first = [f"{key}={shlex.quote(value)} " for key, _, value in variables if os.environ.get(key) != value]
    go = "" if folder == here else f"cd {shlex.quote(str(folder))} && "
    command = f"{go}{''.join(set_first)}{shlex.join([*program(folder), *words[1:]])}"
    return command if plain(command, max_chars=10_000) == command else None


def _is_locked(path: Path) -> bool | None:
    """Return whether a process has a lock; None where it may not be read."""
    try:
        return is_locked(path)
    except PermissionError:
        return None


def _last_change(run: Run) -> datetime:
    """Return when a run last wrote: what a look at the folder or a copied lock changes does not count."""
    names = ("results.json", *NOTES.values(), "checkpoints", "csv", "config.yaml")
    paths = [*(run.folder / name for name in names), *run.folder.glob("csv/version_*/metrics.csv")]
    return datetime.fromtimestamp(max(map(_mtime, paths)) or _mtime(run.folder))


def _mtime(path: Path) -> float:
    """Return when a file was last written; 0 where there is none, or it may not be looked at."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
