"""A folder of downloaded files with a maximum total size, shared by all processes of a machine.

A process reserves the bytes of a file before it downloads it. Files that no process plans to read (`read_plan`) are
evicted first, by unlink, so a process that has one open can still read it. Reservations of dead processes are freed:
see `io.locks`.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mim_lightning.data.shards.read_plan import FINISHED, LOCK, CachedFile, ReadPlans, read_plans
from mim_lightning.display.numbers import format_bytes
from mim_lightning.io.locks import WaitTimeoutError, lock, lock_open_file, release

log = logging.getLogger(__name__)

IN_USE = 10.0  # seconds since the last use within which a file is probably still needed
POLL = 0.02  # seconds between two attempts to reserve space
_WARNED: set[Path] = set()  # folders whose size this process has warned of
PARTIAL = ".partial"  # suffix of a reservation: as large as the file, and locked during the download


@dataclass(frozen=True)
class DiskCache:
    """The files of all folders in `folder`, at most `limit` bytes, reservations included."""

    folder: Path
    limit: int

    @contextmanager
    def reserve(self, path: Path, size: int, seconds: float, idle: float = 0.0) -> Iterator[Reservation]:
        """Reserve space for `path` during the context.

        Args:
            size: bytes.
            seconds: to wait for other downloads to finish, if their reservations fill the folder.
            idle: seconds without use after which a file may be evicted; above 0 it also keeps the files that some
                process plans to read.

        Raises:
            WaitTimeoutError: there was no space in that time.
        """
        deadline = time.monotonic() + seconds
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        while (held := self._try_reserve(partial, size, idle)) is None:
            if time.monotonic() > deadline:
                raise WaitTimeoutError
            time.sleep(POLL)
        try:
            yield Reservation(self, partial, size)
        finally:
            for leftover in [*_attempts(partial), partial]:
                leftover.unlink(missing_ok=True)
            release(held)

    def _try_reserve(self, partial: Path, size: int, idle: float) -> int | None:
        with lock(self.folder / LOCK, timeout=60, removes=True):
            if not self._evict(size, idle):
                return None
            partial.parent.mkdir(parents=True, exist_ok=True)
            held = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
            os.truncate(held, size)  # takes no disk, but counts
            lock_open_file(held)
            return held

    def commit(self, reservation: Reservation, found: Path, target: Path) -> None:
        """Move a file to its place and free its reservation, locked so that no process counts only one of the two."""
        num_bytes = found.stat().st_size
        with lock(self.folder / LOCK, timeout=60, removes=True):
            found.replace(target)
            os.truncate(reservation.path, 0)
            if num_bytes > reservation.size:
                self._evict(0, 0.0)

    def _evict(self, size: int, idle: float) -> bool:
        files, num_bytes = self._scan()
        excess = num_bytes + size - self.limit
        if excess <= 0:
            return True
        plans, chosen, now, is_too_small = read_plans(self.folder), [], time.time(), False
        for file in sorted(files, key=plans.eviction_key):
            if excess <= 0:
                break
            is_needed, is_recent = plans.needs(file), not file.is_finished and now - file.used < (idle or IN_USE)
            if idle and (is_needed or is_recent):
                continue
            is_too_small |= is_needed or is_recent
            chosen.append(file)
            excess -= file.size
        if excess > 0:
            return False
        for file in chosen:
            Path(file.path).unlink(missing_ok=True)
        if is_too_small:
            self._warn_too_small(plans, files)
        return True

    def _warn_too_small(self, plans: ReadPlans, files: Sequence[CachedFile]) -> None:
        """Warn once, although each of many processes evicts files."""
        if self.folder in _WARNED or not plans.mark_as_warned():
            return
        _WARNED.add(self.folder)
        needed = plans.needed_bytes(files)
        log.warning(
            "%s: data.cache.max_size=%s is less than what is read at a time%s: shards are evicted while they are "
            "needed, and downloaded again and again; raise it, or lower data.shuffle_window_shards, "
            "data.num_interleaved or data.num_workers",
            self.folder,
            _as_size(self.limit),
            f", about {_as_size(needed)}" if needed > self.limit else "",
        )

    def _scan(self) -> tuple[list[CachedFile], int]:
        """Return every file that may be evicted, and the total size."""
        files, num_bytes = [], 0
        for folder in _folders(self.folder):
            for entry in list(os.scandir(folder)):
                with suppress(FileNotFoundError):  # renamed or removed meanwhile
                    if entry.name.startswith(".") or (PARTIAL in entry.name and not _is_counted(Path(entry.path))):
                        continue
                    facts = entry.stat()
                    num_bytes += facts.st_size
                    if PARTIAL not in entry.name:
                        is_finished = facts.st_mtime_ns == FINISHED
                        used = facts.st_ctime if is_finished else facts.st_mtime
                        files.append(CachedFile(folder.name, entry.path, facts.st_size, used, is_finished))
        return files, num_bytes


@dataclass(frozen=True)
class Reservation:
    """Path that a file is written to until it is complete."""

    cache: DiskCache
    path: Path
    size: int

    def commit(self, found: Path, target: Path) -> None:
        """Move the complete file to its place."""
        self.cache.commit(self, found, target)


def _as_size(num_bytes: int) -> str:
    """Return bytes as data.cache.max_size takes them, such as "20GB"."""
    return format_bytes(num_bytes).replace(" bytes", "").replace(" ", "").replace(",", "").replace(".0", "")


def _folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()] if folder.is_dir() else []


def _attempts(partial: Path) -> list[Path]:
    return list(partial.parent.glob(f"{partial.name}.try*"))


def _is_counted(path: Path) -> bool:
    """Return whether the file of a download counts: attempts count with their reservation.

    Leftovers of dead processes are removed.
    """
    partial = path.with_name(path.name.split(PARTIAL)[0] + PARTIAL)
    if path != partial:
        if not partial.exists():
            path.unlink(missing_ok=True)
        return False
    held = os.open(path, os.O_RDWR)
    is_dead = lock_open_file(held, if_unsupported=False)
    if is_dead:
        for leftover in [*_attempts(partial), partial]:
            leftover.unlink(missing_ok=True)
        release(held)
    else:
        os.close(held)
    return not is_dead
