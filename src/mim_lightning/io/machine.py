"""The cores and the memory that this process may use, which a container or a scheduler may limit."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")  # lines `<hierarchy>:<controllers>:<path>`


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Return the memory of this machine, or of the container or job if that is less."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else [8 << 30]
    for path in _limit_files():
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdecimal():  # "max": no limit
            sizes.append(int(text))
    return min(sizes)


def can_map(num_bytes: int) -> bool:
    """Return whether the system gives this process so much more memory; its own limit (ulimit -v) may forbid it."""
    try:
        mmap.mmap(-1, num_bytes).close()
    except OSError:
        return False
    return True


def has_memory_limit() -> bool:
    """Return whether this process has a limit of its own (ulimit -v)."""
    try:
        import resource
    except ImportError:  # not on Unix
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _limit_files() -> Iterator[Path]:
    """Yield the files that may limit the memory of this process: of its control groups and of all above them."""
    own = {"": "/", "memory": "/"}  # by controller; version 2 has one hierarchy for all
    try:
        for line in OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own |= dict.fromkeys({"", "memory"}.intersection(controllers.split(",")), path)
    except (OSError, ValueError):  # not on Linux
        pass
    for controller, file in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        top = CGROUPS / controller
        group = top / own[controller].lstrip("/")
        # within a container the path may be that of the host, which is not there: its own group is the top
        yield from (above / file for above in (group, *group.parents) if above.is_relative_to(top))
