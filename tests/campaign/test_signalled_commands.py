"""Ctrl-C and SIGTERM in commands that do not train, in sweeps, at the start of any, and twice."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.campaign.outcomes import cases, points, record_outcome
from tests.campaign.preparation import Prepared, files_of, is_done
from tests.campaign.processes import PATIENCE, EntryPoint, wait_until
from tests.campaign.search import ADD, BUILD, Shop, content_of
from tests.campaign.sweeps import KINDS, WholeSweep, jobs_of
from tests.campaign.test_killed_service import assert_log_is_whole, serve
from tests.campaign.training import WholeRun, assert_nothing_torn, command
from tests.flow.entry_points import ROOT

SIGNALS = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
GONE = "gone, the line and the exit code of the signal"


def stop(started: EntryPoint, name: str, is_finished: Callable[[], bool]) -> str:
    """Send a signal to what is held at an event, and check how it ends; return that in words.

    Args:
        is_finished: whether what it makes is there, as it has to be where it ends with 0.
    """
    started.send(SIGNALS[name])
    code = started.wait_until_gone()
    if code == 0:
        assert is_finished(), "exit code 0 of what is not finished"
        return "had just finished"
    errors = started.stderr.strip().splitlines()
    assert "Traceback" not in started.stderr, f"call stack: {errors[-1]}"
    assert code == 128 + SIGNALS[name], f"exit code {code}: {errors[-1:]}"
    assert re.fullmatch(rf"stopped( .*)? by {SIGNALS[name].name}(; .*)?", errors[-1]), f"last line {errors[-1]!r}"
    return GONE


@pytest.mark.parametrize("rng", points("signal prepare", 8, 0))
def test_preparation(rng: random.Random, prepared: Prepared, tmp_path: Path) -> None:
    what, name = rng.choice(list(prepared.events)), rng.choice(list(SIGNALS))
    out = tmp_path / "data" / "out"
    if what == "prepare add":
        shutil.copytree(prepared.whole, out)
    whole = files_of(prepared.whole if what == "prepare" else prepared.grown)
    event = rng.choice(prepared.events[what])
    words = prepared.command(what, out)
    with record_outcome("signal", what, f"{name} before {event}") as found:
        started = EntryPoint("prepare", words, tmp_path / "scratch", [out, out.parent], event, seconds=0.5)
        assert started.wait_for_event(), started.stderr
        how = stop(started, name, lambda: out.exists() and files_of(out) == whole)
        if not is_done(out, prepared, what):
            last = EntryPoint("prepare", words, tmp_path / "scratch")
            assert last.wait() == 0, last.stderr[-2000:]
        assert files_of(out) == whole, "other files"
        found.outcome = f"{how}; done again, the files of one go"


@pytest.mark.parametrize("rng", points("signal index", 8, 0))
def test_index(rng: random.Random, search_shop: Shop, tmp_path: Path) -> None:
    what, name = rng.choice([BUILD, ADD]), rng.choice(list(SIGNALS))
    index = tmp_path / "data" / "index"
    if what == ADD:
        shutil.copytree(search_shop.index, index)
    after = content_of(search_shop.grown if what == ADD else search_shop.index)
    event = rng.choice(search_shop.events[what])
    words = search_shop.command(what, index)
    with record_outcome("signal", what, f"{name} before {event}") as found:
        started = EntryPoint("build_index", words, tmp_path / "scratch", [index, index.parent], event, seconds=0.5)
        assert started.wait_for_event(), started.stderr
        how = stop(started, name, lambda: content_of(index) == after)
        if what == BUILD or content_of(index) != after:
            last = EntryPoint("build_index", words, tmp_path / "scratch")
            assert last.wait() == 0, last.stderr[-2000:]
        assert content_of(index) == after, "other products or vectors"
        found.outcome = f"{how}; done again, the index of one go"


@pytest.mark.parametrize("name", cases([(name, name) for name in SIGNALS]))
def test_evaluation(name: str, search_shop: Shop, tmp_path: Path) -> None:
    words = [f"checkpoint={search_shop.checkpoint}", "trainer=cpu", f"output={tmp_path}/out"]
    for event in ("mkdir .evaluation.partial", "rename .results.json.partial"):
        with record_outcome("signal", "evaluate", f"{name} before {event}") as found:
            watched = [tmp_path / "out"]
            started = EntryPoint("evaluate", words, tmp_path / "scratch", watched, event, seconds=0.5)
            assert started.wait_for_event(), started.stderr
            found.outcome = stop(started, name, lambda: False)
            assert not (tmp_path / "out" / "results.json").exists() and found.outcome == GONE


@pytest.mark.parametrize("name", cases([(name, name) for name in SIGNALS]))
def test_service(name: str, search_shop: Shop, tmp_path: Path) -> None:
    """docs/search.md: it takes no more requests, and finishes those at work."""
    with record_outcome("signal", "serve, under load", f"{name} after 20 clicks") as found:
        started, clients = serve(search_shop.index, tmp_path)
        wait_until(lambda: len(clients.clicks) >= 20, 60)
        started.send(SIGNALS[name])
        code = started.wait_until_gone()
        clients.join()
        assert code in (0, 128 + SIGNALS[name]), f"exit code {code}: {started.stderr[-500:]}"
        assert "Traceback" not in started.stderr, started.stderr.splitlines()[-1]
        assert not clients.failures and not clients.cut, f"answers {clients.failures}, cut: {clients.cut}"
        assert_log_is_whole(tmp_path / "events.db", [clients], is_all=True)
        found.outcome = f"requests finished, exit code {'0' if code == 0 else 'of the signal'}, log whole"


@pytest.mark.parametrize("rng", points("signal sweep", 6, 0))
def test_sweep(rng: random.Random, sweeps: WholeSweep, tmp_path: Path) -> None:
    kind, name, runs = rng.choice(list(KINDS)), rng.choice(list(SIGNALS)), tmp_path / "runs"
    words, event = sweeps.command(kind, runs), rng.choice(sweeps.events[kind])
    with record_outcome("signal", kind, f"{name} before {event}") as found:
        started = EntryPoint("train", words, tmp_path / "scratch", [runs], event, seconds=0.5)
        assert started.wait_for_event(), started.stderr
        how = stop(started, name, lambda: [job["status"] for job in jobs_of(runs)] == ["finished"] * 2)
        assert_nothing_torn(runs)
        finished = {path: path.stat().st_mtime_ns for path in runs.glob("*/results.json")}
        last = EntryPoint("train", words, tmp_path / "scratch")
        assert last.wait() == 0, last.stderr[-2000:]
        assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished job ran again"
        jobs, expected = jobs_of(runs), jobs_of(sweeps.runs(kind))
        same = [(job["run_id"], job["status"], job["score"]) for job in jobs]
        assert same == [(job["run_id"], job["status"], job["score"]) for job in expected], "other jobs or scores"
        found.outcome = f"{how}; finished jobs kept, the others resumed"


@pytest.mark.parametrize("rng", points("signal start", 6, 0))
def test_imports(rng: random.Random, tmp_path: Path) -> None:
    """In a Python of its own, so that the imports are there: before the package's handlers the default ones end it."""
    module, name = rng.choice(["train", "prepare", "build_index", "serve", "compare"]), rng.choice(list(SIGNALS))
    part = rng.uniform(0.0, 0.9)
    with record_outcome("signal", "imports", f"{name} to {module} at {part:.2f} of them") as found:
        command = [sys.executable, "-X", "importtime", "-m", f"mim_lightning.{module}", "--help"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        whole = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        number = int(part * whole.stderr.count("import time:"))
        process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert process.stderr is not None
        for _ in range(number):
            process.stderr.readline()
        process.send_signal(SIGNALS[name])
        errors = [line for line in process.communicate(timeout=PATIENCE)[1].splitlines() if "import time:" not in line]
        code = process.returncode
        assert code in (0, 128 + SIGNALS[name], -SIGNALS[name]), f"exit code {code}"
        if code == 128 + SIGNALS[name]:
            assert errors[-1].startswith("stopped by"), f"last line {errors[-1]!r}"
        assert code >= 0 or number < 100, "the package's handlers come late"
        found.outcome = "gone at once, the exit code of the signal" if code else "had just finished"


@pytest.mark.parametrize("place", cases([(place, place) for place in ("1 process", "2 processes")]))
def test_a_second_ctrl_c(place: str, whole_of: Callable[[str], WholeRun], tmp_path: Path) -> None:
    whole = whole_of(place)
    words = command(whole.run.folder.parents[1], tmp_path / "runs", place)
    with record_outcome("signal", f"train, {place}", "Ctrl-C in a step that does not end, and again") as found:
        watched, event = [tmp_path / "runs"], "training rows/step"
        started = EntryPoint("train", words, tmp_path / "scratch", watched, event, 2, seconds=1000)
        assert started.wait_for_event(), started.stderr
        started.send(signal.SIGINT)
        time.sleep(1)
        assert started.process.poll() is None, "the first one waits for the step"
        started.send(signal.SIGINT)
        code = started.wait_until_gone()
        assert code == 130 and started.stderr.splitlines()[-1] == "stopped by SIGINT", started.stderr
        found.outcome = "gone at once, the exit code of the signal"
