"""Ctrl-C and SIGTERM in a process of our own: one line, and an exit code that is never 0."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mim_lightning import interruption
from mim_lightning.cli import ERROR_FILE, FROZEN_CONFIG
from mim_lightning.errors import ErrorReport, read_error
from mim_lightning.interruption import Interruption, interruptible, is_entry_point

ENTRY = """
import os, sys
when, signum = sys.argv.pop(1), int(sys.argv.pop(1))
sys.orig_argv = ["python", "-m", "mim_lightning.train"]
import mim_lightning
if when == "start":
    os.kill(os.getpid(), signum)
from mim_lightning.cli import run_entry_point
from mim_lightning.interruption import Interruption

def work(config):
    if not os.fork():
        os.kill(os.getpid(), signum)  # a loader's worker
    print("worker", os.waitstatus_to_exitcode(os.wait()[1]))
    try:
        if when == "work":
            os.kill(os.getpid(), signum)
    except Exception:
        print("swallowed")
    except Interruption as stopped:
        stopped.where = "at step 7"
        raise

run_entry_point("train", work, resumes=True)
os.kill(os.getpid(), signum)
"""
SIGNALS = pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])


def start(when: str, signum: signal.Signals, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", ENTRY, when, str(int(signum))]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@SIGNALS
@pytest.mark.parametrize("when", ["start", "work", "end"])
def test_a_signal_is_one_line_at_any_moment(when: str, signum: signal.Signals) -> None:
    stopped = start(when, signum)
    assert stopped.returncode == 128 + signum
    how_far = " at step 7 by {}; the same command resumes" if when == "work" else " by {}"
    assert stopped.stderr == f"stopped{how_far.format(signum.name)}\n"
    assert stopped.stdout in ("", f"worker {-signum}\n"), "a process that it forked ends without a word"


def test_a_launched_process_leaves_the_line_to_its_parent(tmp_path: Path) -> None:
    frozen = tmp_path / "config.yaml"
    frozen.write_text("{}")
    stopped = start("work", signal.SIGTERM, **{FROZEN_CONFIG: str(frozen)})
    assert (stopped.returncode, stopped.stderr) == (143, "")
    assert read_error(tmp_path / ERROR_FILE) == ErrorReport("Interruption", "at step 7")


@pytest.mark.parametrize(
    ("words", "is_ours"),
    [
        (["python", "-m", "mim_lightning.train", "-m", "seed=1,2"], True),
        (["python", "-u", "-m", "mim_lightning.search", "index=x"], True),
        (["python", "/usr/bin/mim-train", "-m", "seed=1,2"], True),
        (["python", "/usr/bin/mim", "train"], True),
        (["python", "-m", "mim_lightning", "train"], True),
        (["python", "/usr/bin/mimic", "train"], False),
        (["python", "-m", "pytest", "mim_lightning"], False),
        (["python", "-c", "import mim_lightning"], False),
        (["python"], False),
    ],
)
def test_other_programs_keep_their_signals(words: list[str], is_ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", words)
    assert is_entry_point() == is_ours


def test_a_program_that_imports_the_package_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interruptible():
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Our handlers in this process."""
    monkeypatch.setattr(interruption, "GRACE", 1e6)  # or this process would be ended with the others' tests
    former = {signum: signal.getsignal(signum) for signum in interruption.SIGNALS}
    try:
        for signum in interruption.SIGNALS:
            signal.signal(signum, signal.SIG_DFL)
        interruption.install()
        yield
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)


def test_lightnings_handler_does_not_stay_before_ours(installed: None) -> None:
    with pytest.raises(Interruption) as stopped, interruptible():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Lightning does when it starts
        interruption.reinstall_signal_handlers()
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 143


def test_a_signal_within_an_import_is_raised_after_it(
    installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packages take what is raised in the import of another for its absence, and go on."""
    lines = ["import os, signal", "try:", "    os.kill(os.getpid(), signal.SIGTERM)", "except BaseException: pass"]
    (tmp_path / "swallowing.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Interruption), interruptible():
        importlib.import_module("swallowing")
        time.sleep(5)
        pytest.fail("the signal is lost")


@pytest.mark.parametrize("grace", [0.3, 1e6])
def test_an_import_that_never_ends_is_left(
    installed: None, grace: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """After the time to clean up, or at the second signal."""
    second = "" if grace < 1 else "time.sleep(0.2); os.kill(os.getpid(), signal.SIGTERM)"
    lines = ["import os, signal, time", "os.kill(os.getpid(), signal.SIGTERM)", second, "time.sleep(9)", "os._exit(0)"]
    (tmp_path / "hanging.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(interruption, "GRACE", grace)
    child = os.fork()
    if not child:
        interruption._owner = os.getpid()
        with interruptible():
            importlib.import_module("hanging")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
    late = "stopped by SIGTERM: it did not end by itself within 0.3 s\n"
    assert capfd.readouterr().err == (late if grace < 1 else "stopped by SIGTERM\n")


def test_an_error_that_an_interruption_has_become_is_that_interruption(installed: None) -> None:
    with pytest.raises(Interruption), interruptible(), interruptible():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as error:
            raise RuntimeError("of a library") from error
    with pytest.raises(RuntimeError, match="of ours"), interruptible():
        raise RuntimeError("of ours")
