"""A lock keeps other processes out until its holder ends, however it ends."""

import errno
import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mim_lightning.io import locks
from mim_lightning.io.locks import (
    WaitTimeoutError,
    describe_holder,
    lock,
    lock_and_announce,
    release,
    try_lock,
    wait_for_lock,
)

HOLD = """
import sys
from pathlib import Path
from mim_lightning.io.locks import wait_for_lock
wait_for_lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_releases_its_lock(tmp_path: Path) -> None:
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


def test_the_second_process_says_whom_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs" / "mine" / ".lock"
    order: list[str] = []
    said = io.StringIO()  # not capsys: what a thread prints while it is read is lost
    monkeypatch.setattr(sys, "stderr", said)

    def second() -> None:
        with lock_and_announce(path, "mine"):
            order.append("second")

    with lock_and_announce(path, "mine"):
        waiting = threading.Thread(target=second)
        waiting.start()
        while "waiting for it" not in said.getvalue():
            time.sleep(0.01)
        assert said.getvalue().startswith(f"mine: process {os.getpid()} on ")
        order.append("first")
    waiting.join(timeout=10)
    assert order == ["first", "second"], "although the first removed the file that the second waited for"
    assert not path.parent.exists(), "the lock and the folder that was made for it are removed"


def test_a_started_process_holds_an_inheritable_lock(tmp_path: Path) -> None:
    for is_inheritable in (False, True):
        held = try_lock(tmp_path / "lock", is_inheritable)
        assert held is not None
        wait = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
        with subprocess.Popen(wait, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False) as child:
            assert child.stdout is not None
            child.stdout.readline()  # Popen may return before the kernel has closed what is not inherited
            os.close(held)  # as the kernel does when this process ends
            again = try_lock(tmp_path / "lock")
            assert (again is None) == is_inheritable
            if again is not None:
                release(again)
            child.kill()


def test_a_file_system_without_locks_is_used_unguarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(locks, "lock_descriptor", refuse)
    monkeypatch.setattr(locks, "unlock_descriptor", refuse)
    with lock(tmp_path / "lock"), lock(tmp_path / "lock", timeout=0):
        pass


def test_a_lock_holder_that_makes_progress_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PROGRESS_EVERY", 0.0)
    looks = iter([*range(20), *[20] * 1000])
    with lock(tmp_path / "lock"), pytest.raises(WaitTimeoutError):
        wait_for_lock(tmp_path / "lock", timeout=0.05, progress=lambda: next(looks))
    assert next(looks, None) == 20
    assert len(list(looks)) < 999, "it was waited for while the numbers rose, and not for long afterwards"


def test_files_of_the_holder_stay(tmp_path: Path) -> None:
    with lock_and_announce(tmp_path / "run" / ".lock", "run"):
        (tmp_path / "run" / "results.json").write_text("{}")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["results.json"]


def test_a_file_is_read_or_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, later = tmp_path / "index.json", tmp_path / "later"
    for one in (path, later):
        one.write_text("{}")
    removing = locks.lock_for_removal(path)
    assert removing is not None
    with pytest.raises(BlockingIOError):
        locks.ReadLock(path)
    os.close(removing)
    flock = locks.fcntl.flock

    def replace_first(*arguments: int) -> None:
        if later.exists():
            later.replace(path)
        flock(*arguments)

    monkeypatch.setattr(locks.fcntl, "flock", replace_first)
    reading = locks.ReadLock(path)
    assert locks.is_same_file(path, reading._descriptor) and locks.lock_for_removal(path) is None


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EBADF])
def test_an_error_is_no_lock_unless_there_are_none(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "index.json").write_text("{}")
    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    if code == errno.EBADF:
        with pytest.raises(OSError, match=r"Bad file descriptor: '.*index\.json'"):
            locks.lock_for_removal(tmp_path / "index.json")
    else:
        descriptor = locks.lock_for_removal(tmp_path / "index.json")
        assert descriptor is not None
        os.close(descriptor)
