"""Locks between processes: files that the kernel unlocks when their holder ends, however it ends.

`lock` keeps two processes from one piece of work; `lock_and_announce` also says who the other process is. A file system
without locks is used unguarded: that is better than not at all.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

POLL = 0.02  # seconds between two attempts, at first
LONGEST_POLL = 1.0  # after a minute
PROGRESS_EVERY = 1.0  # seconds between two looks at the holder's progress, which take longer
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system without locks
_IS_SUPPORTED = os.name != "nt"  # Windows: others can neither read nor rename a locked file


class WaitTimeoutError(Exception):
    """Another process did not release what this one waits for."""


def try_lock(path: Path, is_inheritable: bool = False, timeout: float = 0.0) -> int | None:
    """Lock a file and return its descriptor, or None if another process has it; `release` unlocks it.

    The file and its folders are made; the holder's process id and host are written to it.

    Args:
        path: of a file that serves only as the lock.
        is_inheritable: whether processes that this one starts hold the lock with it, until the last of them ends.
        timeout: seconds to wait for it.
    """
    try:
        return wait_for_lock(path, is_inheritable, timeout)
    except WaitTimeoutError:
        return None


def wait_for_lock(
    path: Path,
    is_inheritable: bool = False,
    timeout: float | None = None,
    progress: Callable[[], object] = lambda: None,
) -> int:
    """Lock a file as `try_lock` does, waiting for the process that has it.

    Args:
        timeout: seconds without progress of the holder after which to give up; None: never.
        progress: its result changes while the holder makes progress.

    Raises:
        WaitTimeoutError: the holder made no progress for `timeout` seconds.
    """
    started = last_change = last_look = time.monotonic()
    seen: object = None
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # its last holder removed or renamed the folder
            continue
        os.set_inheritable(descriptor, is_inheritable)
        is_free = lock_open_file(descriptor)
        if is_free and is_same_file(path, descriptor):
            _write_holder(descriptor)
            return descriptor
        os.close(descriptor)
        if is_free:  # its last holder removed the file after this process had opened it
            continue
        now = time.monotonic()
        if last_look == started or now - last_look > PROGRESS_EVERY:
            found = progress()
            if found != seen:
                last_change = now
            last_look, seen = now, found
        if timeout is not None and now - last_change >= timeout:
            raise WaitTimeoutError
        time.sleep(min(LONGEST_POLL, max(POLL, (now - started) / 60)))


@contextmanager
def lock(
    path: Path, timeout: float | None = None, progress: Callable[[], object] = lambda: None, removes: bool = False
) -> Iterator[None]:
    """Hold a lock, waiting for another process as `wait_for_lock` does.

    Args:
        removes: whether the file is removed afterwards.
    """
    descriptor = wait_for_lock(path, timeout=timeout, progress=progress)
    try:
        yield
    finally:
        if removes:
            path.unlink(missing_ok=True)
        release(descriptor)


@contextmanager
def lock_and_announce(path: Path, name: str) -> Iterator[None]:
    """Hold a lock with the processes that this one starts; print who has it, if another process does, and wait.

    The file is removed afterwards, and the folders that were made for it if they are empty.

    Args:
        path: of a file that serves only as the lock.
        name: of what is locked.
    """
    made = [folder for folder in path.parents if folder == path.parent or not folder.exists()]
    descriptor = try_lock(path, is_inheritable=True)
    if descriptor is None:
        print(f"{name}: {describe_holder(path)} is working on it; waiting for it to end", file=sys.stderr, flush=True)
        descriptor = wait_for_lock(path, is_inheritable=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        release(descriptor)
        for folder in made:
            with suppress(OSError):  # not empty
                folder.rmdir()


def release(descriptor: int) -> None:
    """Unlock and close a file, also for processes that were forked meanwhile and have its descriptor too."""
    if _IS_SUPPORTED:
        with suppress(OSError):  # a file system without locks
            unlock_descriptor(descriptor)
    os.close(descriptor)


def describe_holder(path: Path) -> str:
    """Return which process has a lock, and since when."""
    try:
        holder = json.loads(path.read_text())
        return f"process {int(holder['pid'])} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # not written yet, or by another version
        return "another process"


def is_locked(path: Path) -> bool:
    """Return whether a process has the lock on a file, which is not changed; False where there are no locks.

    Raises:
        PermissionError: the file may not be read.
    """
    flags = getattr(os, "O_NONBLOCK", 0)
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | flags)  # NFS locks exclusively what can be written
        except PermissionError:
            descriptor = os.open(path, os.O_RDONLY | flags)
    except PermissionError:
        raise
    except OSError:
        return False
    is_free = lock_open_file(descriptor)
    release(descriptor) if is_free else os.close(descriptor)
    return not is_free


def lock_open_file(descriptor: int, if_unsupported: bool = True) -> bool:
    """Lock an open file if no other process has it; return `if_unsupported` on a file system without locks."""
    if not _IS_SUPPORTED:
        return if_unsupported
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError:
        return if_unsupported


class ReadLock:
    """A lock on a file that is read, shared with other readers, until the object ends: see `lock_for_removal`.

    A file that cannot be opened or locked is read unguarded; a process that gets a copy has a lock of its own.

    Raises:
        BlockingIOError: another process is removing the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._descriptor = path, -1
        while True:
            try:
                # a pipe in its place, which its reader refuses, would be waited for
                self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            except OSError:
                return
            is_locked = self._lock()
            if not is_locked or is_same_file(path, self._descriptor):
                return
            os.close(self._descriptor)  # it was replaced meanwhile: who removes it locks the new file
            self._descriptor = -1

    def _lock(self) -> bool:
        if fcntl is None:
            return False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            return False
        return True

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def __reduce__(self) -> tuple[type[ReadLock], tuple[Path]]:
        return ReadLock, (self.path,)


def lock_for_removal(path: Path) -> int | None:
    """Return a descriptor of a file that no process reads under a `ReadLock`, or None if one does.

    Closing it ends the lock.

    Raises:
        OSError: it cannot be locked, although its file system has locks.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)  # NFS locks exclusively what can be written
    except PermissionError:
        descriptor = os.open(path, os.O_RDONLY)
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise OSError(error.errno, error.strerror, str(path)) from None
    return descriptor


def is_same_file(path: Path, descriptor: int) -> bool:
    """Return whether the open file is still the one at `path`, which may have been removed or replaced."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int) -> None:
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    with suppress(OSError):  # a full disk: the lock holds without the name of its holder
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode())
