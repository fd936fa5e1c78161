"""A program that runs a command short of something: room on the disk, shared memory, descriptors, memory, or a clock.

It runs a module like Python's `-m`, under the limits of PLAN. Of a disk it notes every file that is opened for writing
below a folder, and at the place that PLAN names it fills the disk: what follows meets the error of the system, in
Python, C++ or DuckDB. Where no disk of its own could be mounted, it raises the error itself as the file is opened.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PLAN = "MIM_TESTS_STARVED"  # environment variable: a Plan in JSON
NOTES = "MIM_TESTS_WRITES"  # environment variable: a file in which every opened kind of file is noted
CLONE_NEWNS = 0x20000  # of unshare(2)
DEVICES = ("null", "zero", "full", "random", "urandom")
BALLAST = ".ballast"
SIZE = 48 << 20  # bytes of the disk
MEGABYTE = bytes(1 << 20)
_NAMES = (
    (re.compile(r"\.([^/]*)\.[0-9a-f]{8}-\d+-[0-9a-f]{8}\.(partial|former)"), r"\1"),  # of an atomic write
    (re.compile(r"[0-9a-f]{32}"), "#"),
    (re.compile(r"(?<![a-z0-9])[0-9a-f]{8,}(?![a-z0-9])"), "#"),
    (re.compile(r"(scratch-|tmp|page_|media)[a-z0-9_]{8}(?![a-z0-9])"), r"\1#"),
    (re.compile(r"\d+"), "#"),
)


def kind_of(path: str) -> str:
    """Return the name that a file has in every run: without numbers, hashes and what an atomic write adds."""
    for pattern, name in _NAMES:
        path = pattern.sub(name, path)
    return path


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small disk in memory at a new folder; yield whether that is allowed."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607 - of the system


def fill(folder: Path) -> None:
    """Write a file until no byte is free."""
    descriptor = os.open(folder / BALLAST, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with suppress(OSError):
        while True:
            os.write(descriptor, MEGABYTE)
    os.close(descriptor)


def make_room(folder: Path) -> bool:
    """Remove what filled a disk; return whether anything did."""
    is_full = (folder / BALLAST).exists()
    (folder / BALLAST).unlink(missing_ok=True)
    return is_full


class Writes:
    """Notes which kinds of files this process and its forks open for writing, and fills the disk at one of them."""

    def __init__(self, folder: str, kind: str = "", nth: int = 1, is_mounted: bool = True) -> None:
        self.folder, self.kind, self.left, self.is_mounted = folder + "/", kind, nth, is_mounted
        self.notes = os.open(os.environ[NOTES], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.is_within = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_within or event not in ("open", "os.mkdir", "sqlite3.connect"):
            return
        path = arguments[0]
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str | os.PathLike):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        self.is_within = True
        try:
            self.note(os.path.abspath(path), event)
        finally:
            self.is_within = False

    def note(self, path: str, event: str) -> None:
        if not path.startswith(self.folder):
            return
        kind = kind_of(path.removeprefix(self.folder)) + ("/" if event == "os.mkdir" else "")
        os.write(self.notes, f"{kind}\t{_caller()}\n".encode())
        if kind == self.kind:
            self.left -= 1
            if self.left == 0:
                if self.is_mounted:
                    fill(Path(self.folder))
                else:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def _caller() -> str:
    """Return the function of the project that opens a file."""
    frame: Any = sys._getframe(3)
    found = "?"
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("mim_lightning") and name != "mim_lightning.io.atomic":
            return f"{name}.{frame.f_code.co_qualname}"
        found = name if found == "?" else found
        frame = frame.f_back
    return found


@dataclass(frozen=True)
class Plan:
    """What a command lacks.

    Args:
        disk: arguments of `Writes`.
        limits: of resources, by the end of their name, such as NOFILE; AS: bytes beyond those in use.
        shared_memory: "missing", "tiny" or "read-only".
        read_only: folders that cannot be written.
        clock: seconds by which the clock is wrong.
    """

    disk: dict[str, Any] | None = None
    limits: dict[str, int] = field(default_factory=dict)
    shared_memory: str = ""
    read_only: list[str] = field(default_factory=list)
    clock: float = 0.0

    def apply(self) -> None:
        if self.shared_memory or self.read_only:
            unshare_mounts()
        for folder in self.read_only:
            mount("--bind", folder, folder)
            mount("-o", "remount,bind,ro", folder)
        if self.shared_memory == "missing":
            hide_shared_memory()
        elif self.shared_memory:
            mount("-t", "tmpfs", "-o", "size=64k" if self.shared_memory == "tiny" else "ro", "tmpfs", "/dev/shm")  # noqa: S108
        if self.clock:
            shift_clock(self.clock)
        for name, value in self.limits.items():
            value += used_memory() if name == "AS" else 0
            kind = getattr(resource, f"RLIMIT_{name}")
            resource.setrlimit(kind, (value, value))
        if self.disk is not None:
            sys.addaudithook(Writes(**self.disk).hook)


def unshare_mounts() -> None:
    """Give this process mounts of its own, where it may."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("--make-rprivate", "/")


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)  # noqa: S607 - of the system


def hide_shared_memory() -> None:
    """Put another /dev in the place of the one with shared memory."""
    folder = tempfile.mkdtemp()
    mount("-t", "tmpfs", "tmpfs", folder)
    for name in DEVICES:
        Path(folder, name).touch()
        mount("--bind", f"/dev/{name}", f"{folder}/{name}")
    mount("--move", folder, "/dev")
    os.rmdir(folder)


def shift_clock(seconds: float) -> None:
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)


def used_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def can_unshare() -> bool:
    """Return whether this user may have mounts of his own."""
    try:
        command = ["unshare", "-m", "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def main() -> None:
    Plan(**json.loads(os.environ[PLAN])).apply()
    sys.argv = [f"mim_lightning.{sys.argv[1]}", *sys.argv[2:]]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
