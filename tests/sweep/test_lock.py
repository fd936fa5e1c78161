"""One process at a time, until it ends, however it ends."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mim_lightning.sweep.lock import describe_holder, hold, release, try_lock

HOLD = """
import sys
from pathlib import Path
from mim_lightning.sweep.lock import wait_for_lock
wait_for_lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert try_lock(path) is None
        assert describe_holder(path).startswith(f"process {other.pid} on ")
        other.kill()
    held = try_lock(path)
    assert held is not None
    assert try_lock(path) is None
    release(held)
    assert try_lock(path) is not None


def test_who_comes_second_says_for_whom_it_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs" / "mine" / ".lock"
    order: list[str] = []

    def second() -> None:
        with hold(path, "mine"):
            order.append("second")

    with hold(path, "mine"):
        waiting = threading.Thread(target=second)
        waiting.start()
        while "waiting for that" not in (line := capsys.readouterr().err):
            pass
        assert line.startswith(f"mine: process {os.getpid()} on ")
        order.append("first")
    waiting.join(timeout=10)
    assert order == ["first", "second"], "although the first removed the file that the second waited for"
    assert not path.parent.exists(), "neither the lock nor the folder that was made for it stays"


def test_what_the_holder_wrote_stays(tmp_path: Path) -> None:
    with hold(tmp_path / "run" / ".lock", "run"):
        (tmp_path / "run" / "results.json").write_text("{}")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["results.json"]
