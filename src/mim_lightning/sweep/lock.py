"""One at a time: two sweeps must not share a folder, nor two processes train one run.

Processes of a sweep that was killed may live on, on this machine or in a queue; what was started again waits for them
here. The kernel lets go of a lock when its last holder ends, however it ends; the file says who that is.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is held there
    fcntl = None  # type: ignore[assignment]


def try_lock(path: Path, is_shared: bool = False, patience: int = 0) -> int | None:
    """Take a lock and return what holds it, a file descriptor; None if another process has it.

    Args:
        path: of a file that is nothing but the lock.
        is_shared: with the processes that `launch` starts: held until the last of them has ended.
        patience: seconds to wait for it.
    """
    while (held := _lock(path, is_shared, waits=False)) is None and patience > 0:
        time.sleep(1)
        patience -= 1
    return held


def wait_for_lock(path: Path, is_shared: bool = False) -> int:
    """Take a lock, however long another process has it."""
    held = _lock(path, is_shared, waits=True)
    assert held is not None
    return held


def release(held: int) -> None:
    """Let go of a lock, also for the processes that hold it with this one."""
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_UN)
    os.close(held)


@contextmanager
def hold(path: Path, name: str) -> Iterator[None]:
    """Keep other processes from what a file locks, and wait for one that has it; with the processes `launch` starts.

    The file is gone afterwards, and the folders that were made for it if nothing else is in them.

    Args:
        path: of a file that is nothing but the lock.
        name: of what is locked, for the line that says who has it.
    """
    made = [folder for folder in path.parents if folder == path.parent or not folder.exists()]
    held = try_lock(path, is_shared=True)
    if held is None:
        print(f"{name}: {describe_holder(path)} is at it; waiting for that", file=sys.stderr, flush=True)
        held = wait_for_lock(path, is_shared=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        release(held)
        for folder in made:
            with suppress(OSError):  # something is in it
                folder.rmdir()


def describe_holder(path: Path) -> str:
    """Return who has a lock, and since when."""
    try:
        facts = json.loads(path.read_text())
        return f"process {int(facts['pid'])} on {facts['host']}, since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is just being taken, or written by another version
        return "another process"


def _lock(path: Path, is_shared: bool, waits: bool) -> int | None:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.set_inheritable(descriptor, is_shared)
        if fcntl is None:
            return descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # a file system without locks: better unguarded than not at all
            pass
        if _is_still(path, descriptor):
            _sign(descriptor)
            return descriptor
        os.close(descriptor)  # `hold` removed the file while this process waited for it


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    with suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode())
