"""Watches a process of an entry point from within, and stops it where a test wants to kill it or send it a signal.

Imported by forks of the preloaded Python whose environment names it (`tests.preloaded.HOOK`). Writes into a folder:

    processes   a line for each process that started: its id and role
    events      a line for each change of a file below the watched folders, just before it happens
    reached     when the event or the moment is there that was asked for
    cpu-<role>  the CPU time of a process that ended
"""

from __future__ import annotations

import atexit
import json
import os
import re
import resource
import signal
import sys
import time
from typing import Any

SETTINGS = "MIM_CAMPAIGN_HOOK"  # environment variable
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
OWN_NAMES = re.compile(
    r"\.[0-9a-f]{8}-\d+-[0-9a-f]{8}\.|\.scratch-\w{8}|\d{5,}|[0-9a-f]{12,}"
)  # that differ between two runs


def install() -> None:
    settings = json.loads(os.environ[SETTINGS])
    folder, role = settings["folder"], _role()
    append(folder, "processes", f"{os.getpid()} {role}")
    if (num_files := int(settings["num_files"])) > 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, num_files))
    if settings["role"] in (role, "any"):
        if settings["cpu"]:
            signal.setitimer(signal.ITIMER_PROF, settings["cpu"])  # at its end the system ends the process
        if settings["watched"]:
            sys.addaudithook(_watcher(**settings))
    atexit.register(lambda: append(folder, f"cpu-{role}", f"{time.process_time():.3f}"))


def _role() -> str:
    if "RANK" in os.environ:
        return f"rank{os.environ['RANK']}"
    return "launcher" if "MIM_FROZEN_CONFIG" in os.environ else "main"


def _watcher(folder: str, watched: list[str], event_name: str, number: int, seconds: float, **_: Any) -> Any:
    """Return an audit hook.

    At the event of a name, the one with this number among all processes, it sleeps; if `seconds` is 0, it stops the
    process.
    """
    roots = tuple(watched)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in CHANGES or event.startswith("tests."):
            path = arguments[0]
        else:
            return
        path = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if not isinstance(path, str) or not path.startswith(roots) or path.startswith(folder):
            return
        root = next(root for root in roots if path.startswith(root))
        name = f"{event.rpartition('.')[2]} {OWN_NAMES.sub('.', path.removeprefix(root))}"
        append(folder, "events", name)
        if name != event_name or append(folder, "matching", name) != number:
            return
        append(folder, "reached", name)
        if seconds:
            time.sleep(seconds)
        else:
            os.kill(os.getpid(), signal.SIGSTOP)

    return audit


def append(folder: str, name: str, line: str) -> int:
    """Append a line to a file, for several processes; return its number."""
    descriptor = os.open(f"{folder}/{name}", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(descriptor, line.encode() + b"\n")
        return os.pread(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR), 0).count(b"\n")
    finally:
        os.close(descriptor)


if SETTINGS in os.environ:
    install()
