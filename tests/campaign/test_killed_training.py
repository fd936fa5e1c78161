"""Runs that are killed at random moments and at every kind of file change, and resumed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from mim_lightning.run import Run
from tests.campaign.kills import ENDED, Start, kill_somewhere
from tests.campaign.outcomes import cases, points, record_all
from tests.campaign.processes import EntryPoint
from tests.campaign.training import MOMENTS, WholeRun, assert_equal, assert_nothing_torn, command, rows_of

Whole = Callable[[str], WholeRun]
EQUAL = "resumed: weights, results and log equal to the bit, each row once an epoch"


@pytest.mark.parametrize("rng", points("train", 26, 2))
def test_one_process(rng: random.Random, whole_of: Whole, tmp_path: Path) -> None:
    kill_at_random(rng, rng.choice(["1 process", "1 process, 1 data worker"]), whole_of, tmp_path)


@pytest.mark.parametrize("rng", points("train2", 12, 0))
def test_two_processes(rng: random.Random, whole_of: Whole, tmp_path: Path) -> None:
    kill_at_random(rng, "2 processes", whole_of, tmp_path)


@pytest.mark.parametrize("place", cases([(place, place) for place in ("1 process", "2 processes")]))
def test_every_moment(place: str, whole_of: Whole, tmp_path: Path) -> None:
    """One run, killed at one moment after the other."""

    def kill_at(start: Start, what: str, event: str, number: int) -> str:
        started = start(event=event, number=number)
        assert started.wait_for_event(), f"this moment did not come: {started.stderr[-2000:]}"
        started.kill()
        return f"kill -9 {what}"

    kills = [
        (f"kill -9 {what}", partial(kill_at, what=what, event=event, number=number))
        for what, event, number in MOMENTS
        if event
    ]
    kill_and_resume(kills, place, whole_of(place), tmp_path)


def test_a_moment_that_does_not_come_is_recorded_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(start: Start) -> str:
        raise AssertionError("it did not come")

    monkeypatch.setenv("MIM_CAMPAIGN_RECORD", str(tmp_path / "record"))
    whole = WholeRun(Run("id", tmp_path / "shop" / "whole" / "id"), {}, [], set())
    kills = [("kill -9 in a step", lambda start: "kill -9 in a step"), ("kill -9 in a validation", fail)]
    with pytest.raises(AssertionError, match="it did not come"):
        kill_and_resume(kills, "1 process", whole, tmp_path)
    (outcome,) = map(json.loads, (tmp_path / "record").read_text().splitlines())
    assert outcome["input"] == "kill -9 in a validation" and not outcome["holds"]


def kill_at_random(rng: random.Random, place: str, whole_of: Whole, folder: Path) -> None:
    whole = whole_of(place)

    def kill(start: Start) -> str:
        return kill_somewhere(rng, start, whole.events, whole.cpu, folder / "runs" / whole.run.run_id)

    kill_and_resume([("", kill)] * rng.choice([1, 2]), place, whole, folder)


def kill_and_resume(
    kills: Sequence[tuple[str, Callable[[Start], str]]], place: str, whole: WholeRun, folder: Path
) -> None:
    """Start a run and kill it, again and again, then let it end.

    Args:
        kills: each starts it, kills it, and returns when that was; with its name, if that is known before.
    """
    shop, runs = whole.run.folder.parents[1], folder / "runs"
    run = Run(whole.run.run_id, runs / whole.run.run_id)
    words = command(shop, runs, place)
    killed, problem, tried = list[str](), None, ""
    start = partial(EntryPoint, "train", words, folder / "scratch", [run.folder, runs])
    try:
        for name, kill in kills:
            tried = name
            killed.append(kill(start))
            assert_nothing_torn(runs)
        tried = ""
        last = EntryPoint("train", words, folder / "scratch")
        assert last.wait() == 0, last.stderr[-2000:]
        assert_equal(run, whole.run)
        assert set(rows_of(runs)) == whole.rows, "rows of an epoch differ"
    except Exception as error:  # also of a torn file, and of a process that hangs
        problem = error
    # what was killed before a moment at which it failed has not been compared
    record_all("kill", f"train, {place}", [tried] if tried else killed, EQUAL, problem)
    assert killed[0], ENDED
