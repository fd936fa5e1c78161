"""One at a time: two sweeps must not share a folder, nor two processes train one run.

Processes of a sweep that was killed may live on, on this machine or in a queue; the sweep that was started again
waits for them here. The kernel lets go of a lock when its last holder ends, however it ends.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
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


def _lock(path: Path, is_shared: bool, waits: bool) -> int | None:
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
    return descriptor
