"""Files of a shard set that stands at an address, fetched whole into a bounded folder of this machine.

Names of files come in, open files go out; `shards.files` calls it. A file is fetched once for all processes of a
machine, checked, and renamed into place; the files used longest ago make room. A thread of each process that reads
fetches what the order will come to.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mim_lightning.data.shards.disk_cache import PARTIAL, DiskCache, Reservation
from mim_lightning.io.locks import WaitTimeoutError, lock
from mim_lightning.io.remote import Check, download, remote_size
from mim_lightning.io.retry import NotFoundError, RemoteError, RetryPolicy

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
IDLE = 30.0  # seconds without use from which a file may make room for one that is fetched ahead
TOUCH_EVERY = 5.0  # seconds between two marks of use
MAX_WAITING = 256  # files that wait for the thread; beyond, the reader fetches them itself


class ShardError(ValueError):
    """A shard, or a sample in it, cannot be read; names the file."""


class MissingError(ShardError):
    """There is no such file."""


class ChangedError(ValueError):
    """A set is not the one that was opened: the two must not be mixed. It is no damage that may be skipped."""


def changed(place: str, what: str = "was prepared again with other content") -> ChangedError:
    """Return the error for a set that is not the one that was opened at a place."""
    return ChangedError(
        f"{place}: {what} since it was opened; what was read before and what would be read now are two data sets: "
        "start again, which is another run where the content is another"
    )


def as_shard_error(error: RemoteError) -> ShardError:
    return MissingError(str(error)) if isinstance(error, NotFoundError) else ShardError(str(error))


@dataclass(frozen=True)
class CacheSettings:
    """How shards at an address are fetched, and where they are kept.

    Args:
        folder: on a disk of this machine; None: ~/.cache/mim_lightning/shards. Several runs may share it.
        max_size: of the folder, as "20GB" or a number.
        timeout: seconds that a store may be silent.
        retries: further tries after the first, each after a longer pause.
        prefetch_shards: shards that each rank fetches before the order comes to them.
        verify: compare every shard with its checksum whenever a process opens it, those of a local folder too; what
            is fetched is compared in any case.
    """

    folder: str | None = None
    max_size: str | int = "20GB"
    timeout: float = 60.0
    retries: int = 3
    prefetch_shards: int = 8
    verify: bool = False

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"data.cache.max_size={self.max_size}: must be at least 1")
        if self.timeout <= 0:
            raise ValueError(f"data.cache.timeout={self.timeout}: must be above 0 seconds")
        for name in ("retries", "prefetch_shards"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.cache.{name}={getattr(self, name)}: must not be negative")

    @property
    def limit(self) -> int:
        """Return the bytes that the folder may hold."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?i?)B?", str(self.max_size).strip())
        if not match or match[2] not in UNITS:
            raise ValueError(f"data.cache.max_size={self.max_size}: give bytes, or a size such as 20GB or 512MiB")
        return int(float(match[1]) * UNITS[match[2]])

    @property
    def retry_policy(self) -> RetryPolicy:
        return RetryPolicy(self.timeout, self.retries)

    @property
    def root(self) -> Path:
        own = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mim_lightning" / "shards"
        return Path(self.folder or own).expanduser()


class ShardCache:
    """The files of one set; cheap to send to another process, which opens the store anew.

    Args:
        address: of the set.
        version: what changes when the set is written anew; names its folder.
    """

    def __init__(self, address: str, version: str, settings: CacheSettings) -> None:
        self.address, self.settings = address, settings
        self.folder = settings.root / version
        self._room = DiskCache(settings.root, settings.limit)

    def open(self, name: str, size: int | None = None, check: Check | None = None, is_ahead: bool = False) -> int:
        """Return a descriptor of a file, fetched if it is not here; it can be read when the file is long gone.

        Args:
            size: bytes, if they are known.
            check: of a fetched file; raises ValueError where it is damaged, and it is fetched again.
            is_ahead: it is not needed yet, and takes no room from files in use.

        Raises:
            ShardError: it could not be fetched; names it.
        """
        began, policy = time.time(), self.settings.retry_policy
        try:
            found = self._open_there(name)
            if found is not None:
                return found
            seconds = 2 * policy.max_seconds + 60
            with lock(self.folder / f".{name}.lock", seconds, lambda: self._progress(name), removes=True):
                found = self._open_there(name)
                if found is not None:
                    return found
                self._raise_if_failed(name, began)
                return self._fetch(name, size, check, is_ahead)
        except WaitTimeoutError:
            raise ShardError(
                f"{self.address}/{name}: waited in vain for another process that fetches it, or for room in "
                f"{self.settings.root}; give data.cache.max_size more than {self.settings.max_size}"
            ) from None
        except OSError as error:
            raise ShardError(f"data.cache.folder={self.settings.root}: {error}") from error

    def has(self, name: str) -> bool:
        """Is a file here, so that it need not be fetched?"""
        return (self.folder / name).is_file()

    def drop(self, name: str) -> None:
        """Remove a file that turned out damaged, so that it is fetched again."""
        (self.folder / name).unlink(missing_ok=True)

    def _open_there(self, name: str) -> int | None:
        try:
            found = os.open(self.folder / name, os.O_RDONLY)
        except FileNotFoundError:
            return None
        touch(found)
        return found

    def _fetch(self, name: str, size: int | None, check: Check | None, is_ahead: bool) -> int:
        address, target, policy = f"{self.address}/{name}", self.folder / name, self.settings.retry_policy
        size = size or remote_size(address, policy) or 0
        if size > self._room.limit:
            raise ShardError(f"data.cache.max_size={self.settings.max_size}: {address} alone has {size:,} bytes")
        seconds, idle = (0.0, IDLE) if is_ahead else (2 * policy.max_seconds + 60, 0.0)
        with self._room.reserve(target, size, seconds, idle) as reservation:
            try:
                return self._settle(download(address, reservation.path, policy, check), target, reservation)
            except RemoteError as error:
                # the processes that wait for this one need not try themselves
                self._failure(name).write_text(str(error))
                raise as_shard_error(error) from error

    def _settle(self, found: Path, target: Path, reservation: Reservation) -> int:
        opened = os.open(found, os.O_RDONLY)  # before anybody can remove it
        reservation.settle(found, target)
        self._failure(target.name).unlink(missing_ok=True)
        return opened

    def _failure(self, name: str) -> Path:
        return self.folder / f".{name}.failed"

    def _raise_if_failed(self, name: str, began: float) -> None:
        """Take over what another process came to while this one waited for it."""
        with suppress(FileNotFoundError):
            if self._failure(name).stat().st_mtime >= began:
                raise ShardError(self._failure(name).read_text())

    def _progress(self, name: str) -> object:
        with suppress(FileNotFoundError):
            return [(path.name, path.stat().st_size) for path in self.folder.glob(f"{name}.*{PARTIAL}*")]
        return None


def touch(descriptor: int) -> None:
    """Mark a file as used now."""
    if os.utime in os.supports_fd:
        with suppress(OSError):  # a folder that is only read from
            os.utime(descriptor)


class Ahead:
    """A thread of this process that does in the background what is put in; it starts anew after a fork."""

    def __init__(self) -> None:
        self._process_id = -1
        self._waiting: queue.Queue[Callable[[], object]] = queue.Queue()

    def put(self, task: Callable[[], object]) -> None:
        """Have a task done some time, or never if too many wait already."""
        if self._process_id != os.getpid():
            self._process_id, self._waiting = os.getpid(), queue.Queue(MAX_WAITING)
            threading.Thread(target=self._work, args=(self._waiting,), name="ahead", daemon=True).start()
        with suppress(queue.Full):
            self._waiting.put_nowait(task)

    @staticmethod
    def _work(waiting: queue.Queue[Callable[[], object]]) -> None:
        while True:
            task = waiting.get()
            with suppress(ShardError, OSError):  # whoever needs the file will be told
                task()
