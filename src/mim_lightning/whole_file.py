"""Files that appear whole or not at all, whatever happens to the process that writes them.

A path comes in, a path beside it goes out for as long as it is written to. Every room calls it; a reader finds the
former content or the new one, never a part, also after a power cut.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from safetensors import SafetensorError

_PARTIAL = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.(partial|former)")
_ABANDONED_AFTER = 24 * 3600  # seconds without a write, for a writer on a machine that cannot be asked
_FULL_BELOW = 2**20  # bytes free


@contextmanager
def whole_file(path: Path, is_synced: bool = True) -> Iterator[Path]:
    """Yield a path beside `path` to write to: it takes the place of `path` at the end, or is removed after an error.

    No two writers are given the same path, be they threads, processes or machines that share the disk. What writers
    that were killed left beside `path` is removed.

    Args:
        path: the file; its folder must be there. It gets the mode that the umask gives, whoever writes it.
        is_synced: whether the content is on the disk before the name is. Not needed where a file that a power cut
            damages is found and made again.

    Raises:
        OSError: it could not be written; names `path`.
    """
    partial = _partial_of(path)
    try:
        mode = _usual_mode(partial)
        remove_abandoned(path.parent, f".{path.name}.*.partial")
        yield partial
        if partial.stat().st_mode & 0o777 != mode:  # mounts without modes of their own refuse to set any
            partial.chmod(mode)  # some libraries write to a file of their own that only its owner may read
        if is_synced:
            _sync(partial)
        partial.replace(path)
        if is_synced:
            _sync(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(partial), partial):
            # a write that fails names no file, a rename the partial one
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    except (SafetensorError, RuntimeError) as error:  # what safetensors, torch and FAISS make of a failed write
        if isinstance(error, SafetensorError) or _is_full(path.parent):
            code = errno.ENOSPC if _is_full(path.parent) else errno.EIO
            raise OSError(code, f"{os.strerror(code)} ({error})", str(path)) from error
        raise
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path` to write into: it takes the place of `path` at the end, as files do.

    A former folder is there until the new one is whole; nothing else is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, f".{path.name}.*")
    partial = _partial_of(path)
    former = partial.with_suffix(".former")
    try:
        partial.mkdir()
        yield partial
        if path.exists():
            path.rename(former)
        try:
            partial.rename(path)
        except OSError:
            if former.exists():
                former.rename(path)
            raise
    finally:
        for folder in (partial, former):
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(folder: Path, pattern: str = ".*") -> None:
    """Remove the partial files and folders in a folder that writers left behind which were killed."""
    for found in folder.glob(pattern):
        written_by = _PARTIAL.fullmatch(found.name)
        if written_by is None:
            continue
        with suppress(OSError):  # another process may be removing it too
            if written_by[1] == _machine():
                is_abandoned = not _is_alive(int(written_by[2]))
            else:
                is_abandoned = time.time() - found.stat().st_mtime > _ABANDONED_AFTER
            if is_abandoned and found.is_dir():
                shutil.rmtree(found, ignore_errors=True)
            elif is_abandoned:
                found.unlink()


def _partial_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")


@cache
def _machine() -> str:
    """Return what tells the processes of this machine or container, whose numbers can be asked for, from others."""
    try:
        numbers = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux
        numbers = 0
    return hashlib.sha256(f"{socket.gethostname()} {numbers}".encode()).hexdigest()[:8]


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < _FULL_BELOW


def _usual_mode(path: Path) -> int:
    """Return the mode of a new file: the umask cannot be read without setting it for all threads."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)
        path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if path.is_dir():  # some network file systems cannot
            return
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)
