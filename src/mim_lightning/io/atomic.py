"""Atomic writes of files and folders: a reader finds the former content or the new one, also after a power cut."""

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
_ABANDONED_AFTER = 24 * 3600  # seconds without a write, for a writer on another machine
_FULL_BELOW = 2**20  # bytes free


@contextmanager
def atomic_write(path: Path, is_synced: bool = True, replaces_folder: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it replaces `path` at the end, or is removed after an error.

    No two writers get the same path, be they threads, processes or machines that share the disk. Partial files of
    killed writers beside `path` are removed.

    Args:
        path: the file; its folder must exist. Its mode is what the umask gives.
        is_synced: whether the content is on the disk before the file is renamed. Not needed where a file that a power
            cut damages is detected and made again.
        replaces_folder: whether the file may take the place of a folder.

    Raises:
        OSError: it could not be written; names `path`.
    """
    partial = _partial_of(path)
    try:
        with write_errors_named(path, partial):
            mode = _usual_mode(partial)
            remove_abandoned(path.parent, f".{path.name}.*.partial")
            yield partial
            if partial.stat().st_mode & 0o777 != mode:  # mounts without modes refuse to set one
                partial.chmod(mode)  # some libraries create a file that only its owner may read
            if is_synced:
                _sync(partial)
            if replaces_folder and path.is_dir():
                _put_in_place(partial, path)
            else:
                partial.replace(path)
            if is_synced:
                _sync(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def write_errors_named(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Name what could not be written: the error of a full disk names no file, and libraries raise their own.

    Args:
        path: to name.
        partial: a file, or a folder with files, that errors may name instead of `path`.

    Raises:
        OSError: names `path`, or another file that the error named.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        is_partial = partial is not None and named is not None and Path(os.fsdecode(named)).is_relative_to(partial)
        if error.errno is not None and (named is None or is_partial):
            # a failed write names no file, a failed rename the partial one
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    except (SafetensorError, RuntimeError) as error:  # safetensors, torch and FAISS raise these for a failed write
        if isinstance(error, SafetensorError) or _is_full(path.parent):
            code = errno.ENOSPC if _is_full(path.parent) else errno.EIO
            raise OSError(code, f"{os.strerror(code)} ({error})", str(path)) from error
        raise


@contextmanager
def atomic_write_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path` to write into; it replaces `path` at the end.

    A former folder, or file, stays until the new one is complete; nothing else is left beside it. After a kill between
    the two renames it is found by `restore_former`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, f".{path.name}.*")
    partial = _partial_of(path)
    try:
        with write_errors_named(path, partial):
            partial.mkdir()
            yield partial
            _sync(partial)
            _put_in_place(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def restore_former(path: Path) -> None:
    """Rename a former folder back to its place, which is empty where its writer was killed between two renames.

    Call it before `remove_abandoned`, and where nobody else writes `path`.
    """
    if path.exists():
        return
    found = [former for former in path.parent.glob(f".{path.name}.*.former") if _PARTIAL.fullmatch(former.name)]
    if found:
        max(found, key=lambda former: former.stat().st_mtime).rename(path)


def remove_abandoned(folder: Path, pattern: str = ".*") -> None:
    """Remove the partial files and folders that killed writers left in a folder."""
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


def _put_in_place(partial: Path, path: Path) -> None:
    """Rename what is complete to its place; what was there is removed when that is on the disk, or else back again."""
    former = partial.with_suffix(".former")
    try:
        if path.exists():
            path.rename(former)
        partial.rename(path)
        _sync(path.parent)
    finally:
        if former.exists() and not path.exists():
            former.rename(path)
        elif former.is_dir():
            shutil.rmtree(former, ignore_errors=True)
        else:
            former.unlink(missing_ok=True)


def _partial_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")


@cache
def _machine() -> str:
    """Return a hash of host and PID namespace: process ids are comparable only within one."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux
        namespace = 0
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


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
    """Return the mode of a new file; reading the umask itself would set it for all threads."""
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
