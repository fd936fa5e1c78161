"""Runs that get Ctrl-C or SIGTERM at chosen and at random moments: gone in seconds, resumed, never 0 before the end."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from mim_lightning.run import Run
from tests.campaign.outcomes import cases, points, record_outcome
from tests.campaign.processes import EntryPoint, wait_until
from tests.campaign.training import MOMENTS, WholeRun, assert_equal, assert_nothing_torn, command, rows_of

Whole = Callable[[str], WholeRun]
SIGNALS = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
SHORT = {  # in the default suite
    ("1 process", "SIGTERM"): {"in a step", "in a checkpoint, before it has its name"},
    ("2 processes", "Ctrl-C"): {"in a checkpoint, before it has its name"},
}
ROUNDS = [(f"{place}, {name}", (place, name)) for place in ("1 process", "2 processes") for name in SIGNALS]


@pytest.mark.parametrize("round_", cases(ROUNDS))
def test_every_moment(round_: tuple[str, str], whole_of: Whole, tmp_path: Path) -> None:
    assert stop_and_resume(*round_, MOMENTS, whole_of, tmp_path) == [what for what, _, _ in MOMENTS]


@pytest.mark.parametrize("round_", SHORT, ids=", ".join)
def test_a_few_moments(round_: tuple[str, str], whole_of: Whole, tmp_path: Path) -> None:
    moments = [moment for moment in MOMENTS if moment[0] in SHORT[round_]]
    assert stop_and_resume(*round_, moments, whole_of, tmp_path) == [what for what, _, _ in moments]


@pytest.mark.campaign
@pytest.mark.parametrize("name", SIGNALS)
def test_one_of_two_processes_alone(name: str, whole_of: Whole, tmp_path: Path) -> None:
    """The other waits in a collective, which breaks before a signal reaches it."""
    whole = whole_of("2 processes")
    runs = tmp_path / "runs"
    run = Run(whole.run.run_id, runs / whole.run.run_id)
    words = command(whole.run.folder.parents[1], runs, "2 processes")
    with record_outcome("signal", "train, 2 processes", f"{name} to one alone, before anything is written") as found:
        watched, event = [run.folder, runs], "open .config.yaml.partial"
        started = EntryPoint("train", words, tmp_path / "scratch", watched, event, seconds=60)
        assert started.wait_for_event(), started.stderr
        time.sleep(3)  # the other comes to its collective
        os.kill(started.pid("rank0"), SIGNALS[name])
        code, errors = started.wait_until_gone(), started.stderr
        assert "Traceback" not in errors, errors.splitlines()[-1]
        # the one that waits sees no Ctrl-C of its own: of a signal to one process alone SIGTERM is said
        assert code == 143 and errors.splitlines()[-1] == "stopped by SIGTERM; the same command resumes", errors
        found.outcome = "gone, one line and an exit code that is not 0"


@pytest.mark.parametrize("rng", points("signals", 12, 0))
def test_random_moments(rng: random.Random, whole_of: Whole, tmp_path: Path) -> None:
    place, name = rng.choice(["1 process", "1 process, 1 data worker", "2 processes"]), rng.choice(list(SIGNALS))
    events = whole_of(place).events
    drawn = [events[idx] for idx in sorted(rng.sample(range(len(events)), 2))]
    moments = [(f"at random: {event}", event, 1) for event in drawn]
    assert stop_and_resume(place, name, moments, whole_of, tmp_path), "no moment came"


def stop_and_resume(
    place: str, name: str, moments: Sequence[tuple[str, str, int]], whole_of: Whole, folder: Path
) -> list[str]:
    """Send a run a signal at one moment after the other, each time by starting it again, then let it end.

    Returns:
        the moments that came: a run that resumes may have one behind it.
    """
    whole = whole_of(place)
    shop, runs = whole.run.folder.parents[1], folder / "runs"
    run, words = Run(whole.run.run_id, runs / whole.run.run_id), command(shop, runs, place)
    stops: list[tuple[str, str, Exception | None]] = []
    for what, event, number in moments:
        started = EntryPoint("train", words, folder / "scratch", [run.folder, runs], event, number, seconds=0.5)
        how, problem = "", None
        try:
            if event and not started.wait_for_event():
                assert started.process.returncode == 0, started.stderr[-2000:]
                continue  # a resumed run has that behind it
            how = stop(started, run, SIGNALS[name])
        except Exception as error:  # also of a torn file, and of a process that hangs
            problem = error
            started.kill()
        stops.append((what, how, problem))
    problem = None
    try:
        last = EntryPoint("train", words, folder / "scratch")
        assert last.wait() == 0, last.stderr[-2000:]
        assert_equal(run, whole.run)
        assert set(rows_of(runs)) == whole.rows, "rows of an epoch differ"
    except Exception as error:
        problem = error
    failures = []
    for what, how, own in stops:
        try:
            with record_outcome("signal", f"train, {place}", f"{name} {what}") as found:
                if own or problem:
                    raise own or problem  # type: ignore[misc]
                found.outcome = f"{how}; resumed, equal to the bit"
        except AssertionError as error:
            failures.append(str(error))
    assert not failures, "\n".join(failures)
    return [what for what, _, _ in stops]


def stop(started: EntryPoint, run: Run, signum: int) -> str:
    """Send a signal, and check what a run that is stopped leaves; return it in words."""
    is_first = not started.reached()
    if is_first:
        wait_until(lambda: bool(started.left()))
    started.send(signum)
    code = started.wait_until_gone()
    errors = started.stderr.strip().splitlines()
    assert "Traceback" not in started.stderr, f"call stack: {errors[-1]}"
    assert_nothing_torn(run.folder)
    if run.results_path.exists():
        assert code in (0, 128 + signum), f"exit code {code} of a finished run"
        return "had just finished"
    assert code == 128 + signum, f"exit code {code}: {errors[-1:]}"
    pattern = rf"stopped( at step (\d+))? by {signal.Signals(signum).name}(; the same command resumes)?"
    said = re.fullmatch(pattern, errors[-1])
    assert said, f"the last line is {errors[-1]!r}"
    if said[2] is None:
        return "gone, the line and the exit code of the signal, nothing to save"
    assert said[3], "does not say how to resume"
    last = torch.load(run.last_checkpoint, weights_only=True)["global_step"] if run.last_checkpoint.exists() else 0
    assert last == int(said[2]), f"{errors[-1]}, but the checkpoint is of step {last}"
    return "gone, the line and the exit code of the signal, saved where it was"
