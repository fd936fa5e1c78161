"""A folder of fetched files that hold at most so many bytes together, whichever processes of the machine fill it.

Whoever fetches a file reserves its bytes first; what was used longest ago makes room, by unlink: who has it open
reads on. `shard_cache` calls it. A dead process holds nothing: see `io.locks`.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mim_lightning.io.locks import WaitTimeoutError, lock, lock_open_file, release

log = logging.getLogger(__name__)

IN_USE = 10.0  # seconds since its last use within which a file is probably still needed
POLL = 0.02  # seconds between two attempts to reserve space
PARTIAL = ".partial"  # ending of a reservation: as large as the file to come, and locked while somebody fetches it


@dataclass(frozen=True)
class DiskCache:
    """The files of all folders in `folder`, at most `limit` bytes, reservations included."""

    folder: Path
    limit: int

    @contextmanager
    def reserve(self, path: Path, size: int, seconds: float, idle: float = 0.0) -> Iterator[Reservation]:
        """Keep room for `path` until the end of the context.

        Args:
            size: bytes.
            seconds: to wait for others to finish what they fetch, where their reservations fill the folder.
            idle: seconds for which a file must not have been used to be removed.

        Raises:
            WaitTimeoutError: there was no room in all that time.
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
            for leftover in [*_tries(partial), partial]:
                leftover.unlink(missing_ok=True)
            release(held)

    def _try_reserve(self, partial: Path, size: int, idle: float) -> int | None:
        with lock(self.folder / ".lock", timeout=60, removes=True):
            if not self._make_room(size, idle):
                return None
            partial.parent.mkdir(parents=True, exist_ok=True)
            held = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
            os.truncate(held, size)  # takes no disk, but counts
            lock_open_file(held)
            return held

    def settle(self, reservation: Reservation, found: Path, target: Path) -> None:
        """Move a file to its place instead of its reservation, while nobody counts: one of the two would be missed."""
        num_bytes = found.stat().st_size
        with lock(self.folder / ".lock", timeout=60, removes=True):
            found.replace(target)
            os.truncate(reservation.path, 0)
            if num_bytes > reservation.size:
                self._make_room(0, 0.0)

    def _make_room(self, size: int, idle: float) -> bool:
        files, num_bytes = self._survey()
        excess, chosen, now = num_bytes + size - self.limit, [], time.time()
        for used, file_size, path in sorted(files):
            if excess <= 0 or now - used < idle:
                break
            chosen.append((used, path))
            excess -= file_size
        if excess > 0:
            return False
        for _, path in chosen:
            path.unlink(missing_ok=True)
        if chosen and now - chosen[-1][0] < IN_USE:
            _tell_that_it_is_tight(self.folder)
        return True

    def _survey(self) -> tuple[list[tuple[float, int, Path]], int]:
        """Return time of last use, bytes and path of every file that may go, and the bytes of all there are."""
        files, num_bytes = [], 0
        for folder in _folders(self.folder):
            for entry in list(os.scandir(folder)):
                path = Path(entry.path)
                with suppress(FileNotFoundError):  # renamed or removed meanwhile
                    if entry.name.startswith(".") or not _counts(path):
                        continue
                    facts = entry.stat()
                    num_bytes += facts.st_size
                    if PARTIAL not in entry.name:
                        files.append((facts.st_mtime, facts.st_size, path))
        return files, num_bytes


@dataclass(frozen=True)
class Reservation:
    """Where a file is written to until it is whole."""

    room: DiskCache
    path: Path
    size: int

    def settle(self, found: Path, target: Path) -> None:
        """Move a file that has come whole to its place."""
        self.room.settle(self, found, target)


@cache  # once
def _tell_that_it_is_tight(folder: Path) -> None:
    log.warning(
        "%s: files used within the last %.0f s had to make room, and may be fetched again and again; give "
        "data.cache.max_size more, or data.shuffle_window_shards and data.num_interleaved less",
        folder,
        IN_USE,
    )


def _folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()] if folder.is_dir() else []


def _tries(partial: Path) -> list[Path]:
    return list(partial.parent.glob(f"{partial.name}.try*"))


def _counts(path: Path) -> bool:
    """Does a file count by itself? Tries count with their reservation. What a dead process left is removed."""
    if PARTIAL not in path.name:
        return True
    partial = path.with_name(path.name.split(PARTIAL)[0] + PARTIAL)
    if path != partial:
        if not partial.exists():
            path.unlink(missing_ok=True)
        return False
    held = os.open(path, os.O_RDWR)
    is_dead = lock_open_file(held, if_unsupported=False)
    if is_dead:
        for leftover in [*_tries(partial), partial]:
            leftover.unlink(missing_ok=True)
        release(held)
    else:
        os.close(held)
    return not is_dead
