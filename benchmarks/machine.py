"""The machine that a benchmark ran on, and time and memory of processes, from Linux's /proc."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown CPU")


def describe_machine() -> str:
    """Return the processor, its cores and the load, as the note under a table says them."""
    return f"{cpu()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def run_measurement(*arguments: object, source: Path | None = None) -> Any:
    """Run Python with arguments in a process of its own, and return the JSON that its last line holds.

    Args:
        source: src folder of other code than the installed one.
    """
    environment = os.environ | ({"PYTHONPATH": str(source.resolve())} if source is not None else {})
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def cpu_seconds() -> float:
    """Return the CPU time of this process, of those it waited for, and of its loaders' workers."""
    seconds = sum(os.times()[:4])
    for child in multiprocessing.active_children():
        with suppress(OSError):
            seconds += process_seconds(child.pid)
    return seconds


def process_seconds(pid: int | None) -> float:
    """Return the CPU time of a process, without its children's."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return sum(int(ticks) for ticks in stat.rsplit(") ", 1)[1].split()[11:13]) / os.sysconf("SC_CLK_TCK")


def process_tree(pid: int) -> Iterator[int]:
    """Yield a process and those that it started, as far as they still run."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from process_tree(int(child))


def memory_bytes(name: str = "VmRSS", pid: int | str = "self") -> int:
    """Return what a process holds: VmRSS, its resident size, VmHWM, the largest so far, or RssAnon, without files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def tree_bytes(name: str = "VmRSS", pid: int | None = None) -> int:
    """Return what this process, or another, and its children hold; what they share counts once for each."""
    total = 0
    for one in process_tree(pid or os.getpid()):
        with suppress(OSError):
            total += memory_bytes(name, one)
    return total


def reset_peak() -> None:
    """Let VmHWM of this process start anew."""
    Path("/proc/self/clear_refs").write_text("5")


class Peak:
    """The largest value that a function returns while a block runs, called every few milliseconds by a thread."""

    def __init__(self, read: Callable[[], int], interval: float) -> None:
        self.value, self._read, self._interval, self._is_over = 0, read, interval, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._is_over.wait(self._interval):
            self.value = max(self.value, self._read())
