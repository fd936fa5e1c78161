"""Which files of a cache the processes of a machine will read next: each says so in a file beside those it caches.

The order of a run is known in advance, so the cache need not guess from the past what to evict. A plan ends with the
process that made it: its file is locked, see `io.locks`.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mim_lightning.io.locks import lock, lock_open_file, release

SUFFIX = ".plan"
LOCK = ".lock"  # of a cache: whoever has it counts and evicts
LIFETIME = 600.0  # seconds after the last update, on a file system without locks
WARNED = ".warned"  # suffix of a mark beside a plan: its user knows that the cache is too small
FINISHED = 0  # modification time, in ns, of a file that its reader needs no more


class ReadPlan:
    """The plan of this process.

    Args:
        folder: of the cache.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f".{uuid.uuid4().hex[:12]}{SUFFIX}"
        with lock(folder / LOCK, timeout=60, removes=True):  # or it would be taken for that of a dead process
            # held, and so locked, until this process ends and those that it forked
            self._held = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            lock_open_file(self._held)
        self._readers: dict[tuple[str, str], list[str]] = {}
        self._started: dict[str, float] = {}

    def update(self, reader: str, set_name: str, needed: Sequence[str], is_new_pass: bool) -> None:
        """Say which files of a set a reader needs, in the order in which it needs them.

        Args:
            needed: stems of their names; empty: none at present, but the set will be read again.
            is_new_pass: the reader is about to read all of the set again.
        """
        self._readers[reader, set_name] = list(needed)
        if is_new_pass or set_name not in self._started:
            self._started[set_name] = time.time()
        if not needed:
            del self._readers[reader, set_name]
        content = {
            name: {"started": started, "needed": [files for key, files in self._readers.items() if key[1] == name]}
            for name, started in self._started.items()
        }
        written = self._path.with_name(f"{self._path.name}.new")
        with suppress(OSError):  # a full disk: the last plan holds, and files used long ago are evicted first
            written.write_text(json.dumps(content))
            written.replace(self._path.with_name(f"{self._path.name}.json"))


class CachedFile(NamedTuple):
    set_name: str
    path: str
    size: int
    used: float  # time of its last use, or of its end if it is finished
    is_finished: bool

    @property
    def stem(self) -> str:
        return os.path.basename(self.path).split(".")[0]


class ReadPlans:
    """The plans of all living processes.

    Args:
        plans: the content of each.
        paths: of their files.
    """

    def __init__(self, plans: Iterable[dict[str, dict]], paths: Sequence[Path] = ()) -> None:
        self._paths = paths
        self._started: dict[str, float] = {}
        self._needed: dict[tuple[str, str], int] = {}  # set and stem -> files that some reader needs before it
        for plan in plans:
            for name, facts in plan.items():
                self._started[name] = max(facts["started"], self._started.get(name, 0.0))
                for files in facts["needed"]:
                    for place, stem in enumerate(files):
                        self._needed[name, stem] = min(place, self._needed.get((name, stem), place))

    def needs(self, file: CachedFile) -> bool:
        return (file.set_name, file.stem) in self._needed

    def eviction_key(self, file: CachedFile) -> tuple[int, float]:
        """Return a sort key: what is needed latest, or never, is evicted first."""
        if self.needs(file):
            return 3, -self._needed[file.set_name, file.stem]
        if file.set_name not in self._started:  # no living process reads this set
            return 0, file.used
        # a pass reads every file once: the next pass is later than the rest of this one
        is_done = file.is_finished and file.used >= self._started[file.set_name]
        return 1 if is_done else 2, file.used

    def needed_bytes(self, files: Iterable[CachedFile]) -> int:
        """Return about how many bytes take all files that are needed, also those that are not there now."""
        sizes: dict[tuple[str, str], int] = {}
        for file in files:
            key = file.set_name, file.stem
            sizes[key] = sizes.get(key, 0) + file.size
        known = [size for key, size in sizes.items() if key in self._needed]
        return round(len(self._needed) * sum(known) / len(known)) if known else 0

    def mark_as_warned(self) -> bool:
        """Mark that the users of these plans know that the cache is too small; False: they all knew."""
        marks = [path.with_name(f"{path.name}{WARNED}") for path in self._paths]
        is_new = not marks or not all(mark.exists() for mark in marks)
        for mark in marks:
            with suppress(OSError):  # a full disk
                mark.touch()
        return is_new


def read_plans(folder: Path) -> ReadPlans:
    """Read the plans of the processes that use a cache, which is locked; those of dead processes are removed."""
    plans, paths = [], []
    for path in folder.glob(f".*{SUFFIX}"):
        content = path.with_name(f"{path.name}.json")
        with suppress(FileNotFoundError):  # removed by another process
            held = os.open(path, os.O_RDWR)
            age = time.time() - (content if content.exists() else path).stat().st_mtime
            if lock_open_file(held, if_unsupported=age > LIFETIME):
                for leftover in (path, content, *(path.with_name(f"{path.name}{end}") for end in (".new", WARNED))):
                    leftover.unlink(missing_ok=True)
                release(held)
                continue
            os.close(held)
            plans.append(json.loads(content.read_bytes()))
            paths.append(path)
    return ReadPlans(plans, paths)


def count_plans(folder: Path) -> int:
    """Return how many processes use a cache; some may be dead, until the cache is full."""
    return sum(1 for _ in folder.glob(f".*{SUFFIX}"))


def finish(path: Path) -> None:
    """Mark a file that its reader needs no more; using it again unmarks it."""
    with suppress(OSError):  # evicted, or a read-only folder
        os.utime(path, ns=(time.time_ns(), FINISHED))
