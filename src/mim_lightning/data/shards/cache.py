"""The cache of a shard set at an address: whole files in a bounded local folder, shared by all processes of a machine.

A file is downloaded once, checked, and renamed into place. What the order of a run needs next is prefetched, and kept
when others have to be evicted.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mim_lightning.data.shards.disk_cache import PARTIAL, DiskCache, Reservation
from mim_lightning.data.shards.read_plan import ReadPlan, count_plans, finish
from mim_lightning.io.locks import WaitTimeoutError, lock
from mim_lightning.io.remote import Check, download, remote_size
from mim_lightning.io.retry import NotFoundError, RemoteError, RetryPolicy

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
IDLE = 30.0  # seconds without use after which a file that no process plans to read may be evicted for a prefetched one
TOUCH_EVERY = 5.0  # seconds between two updates of the time of use


class ShardError(ValueError):
    """A shard, or a sample in it, cannot be read; names the file."""


class MissingError(ShardError):
    """There is no such file."""


class NoSpaceError(ShardError):
    """All of the cache is needed, or being downloaded."""


class ChangedError(ValueError):
    """A set was replaced since it was opened: the two must not be mixed, so this is not damage that may be skipped."""


def changed(place: str, what: str = "was prepared again with other content") -> ChangedError:
    """Return the error for a set that was replaced since it was opened."""
    return ChangedError(
        f"{place}: {what} since it was opened; samples read before and after are of two data sets: start again, which "
        "is another run if the content differs"
    )


def as_shard_error(error: RemoteError) -> ShardError:
    return MissingError(str(error)) if isinstance(error, NotFoundError) else ShardError(str(error))


def parse_size(key: str, value: str | int) -> int:
    """Return the number of bytes that a config key gives."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?i?)B?", str(value).strip())
    if not match or match[2] not in UNITS:
        raise ValueError(f"{key}={value}: give bytes, or a size such as 20GB or 512MiB")
    return int(float(match[1]) * UNITS[match[2]])


@dataclass(frozen=True)
class CacheSettings:
    """How shards at an address are downloaded, and where they are stored.

    Args:
        folder: on a disk of this machine; None: ~/.cache/mim_lightning/shards. Several runs may share it.
        max_size: of the folder, as "20GB" or a number.
        timeout: seconds without an answer from the store.
        retries: attempts after the first, each after a longer pause.
        prefetch_shards: shards that each rank fetches before the order comes to them.
        connections: downloads at a time of each loader of a rank.
        verify: compare every shard with its checksum when a process opens it, in a local folder too; downloads are
            always compared.
    """

    folder: str | None = None
    max_size: str | int = "20GB"
    timeout: float = 60.0
    retries: int = 3
    prefetch_shards: int = 8
    connections: int = 8
    verify: bool = False

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"data.cache.max_size={self.max_size}: must be at least 1")
        if self.timeout <= 0:
            raise ValueError(f"data.cache.timeout={self.timeout}: must be above 0 seconds")
        if self.connections < 1:
            raise ValueError(f"data.cache.connections={self.connections}: must be at least 1")
        for name in ("retries", "prefetch_shards"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.cache.{name}={getattr(self, name)}: must not be negative")

    @property
    def limit(self) -> int:
        """Maximum size of the folder in bytes."""
        return parse_size("data.cache.max_size", self.max_size)

    @property
    def retry_policy(self) -> RetryPolicy:
        return RetryPolicy(self.timeout, self.retries)

    @property
    def root(self) -> Path:
        own = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mim_lightning" / "shards"
        return Path(self.folder or own).expanduser()


class ShardCache:
    """The files of one set; cheap to send to another process.

    Args:
        address: of the set.
        version: changes when the set is written again; names its folder.
    """

    def __init__(self, address: str, version: str, settings: CacheSettings) -> None:
        self.address, self.settings = address, settings
        self.folder = settings.root / version
        self._disk = DiskCache(settings.root, settings.limit)

    def open(self, name: str, size: int | None = None, check: Check | None = None, is_prefetch: bool = False) -> int:
        """Return a descriptor of a file, downloaded if it is not cached; it stays readable after an eviction.

        Args:
            name: in the cache, see `with_mark`.
            size: bytes, if they are known.
            check: of a downloaded file; raises ValueError if it is damaged, and it is downloaded again.
            is_prefetch: it is not needed yet, and evicts no file that is.

        Raises:
            ShardError: it could not be downloaded; names it.
        """
        started, policy = time.time(), self.settings.retry_policy
        try:
            found = self._open_cached(name)
            if found is not None:
                return found
            seconds = 2 * policy.max_seconds + 60
            with lock(self.folder / f".{name}.lock", seconds, lambda: self._progress(name), removes=True):
                found = self._open_cached(name)
                if found is not None:
                    return found
                self._raise_if_failed(name, started)
                return self._download(name, size, check, is_prefetch)
        except WaitTimeoutError:
            raise NoSpaceError(
                f"{self.address}/{without_mark(name)}: timed out waiting for another process to download it, or for "
                f"space in {self.settings.root}; give data.cache.max_size more than {self.settings.max_size}"
            ) from None
        except OSError as error:
            raise ShardError(f"data.cache.folder={self.settings.root}: {error}") from error

    @property
    def room(self) -> int:
        """Bytes for the files that this process needs: as many as for each other process that plans what it reads."""
        return self._disk.limit // max(1, count_plans(self._disk.folder))

    def has(self, name: str) -> bool:
        """Return whether a file is cached."""
        return (self.folder / name).is_file()

    def drop(self, name: str) -> None:
        """Remove a damaged file, so that it is downloaded again."""
        (self.folder / name).unlink(missing_ok=True)

    def plan(self, reader: str, needed: Sequence[str], finished: Sequence[str], is_new_pass: bool) -> None:
        """Keep the shards that a reader needs next, and let those go that it has finished.

        Args:
            needed: stems of their files, in the order in which they are needed.
            is_new_pass: the reader is about to read the set once more.
        """
        try:
            _open_plan(self._disk.folder, os.getpid()).update(reader, self.folder.name, needed, is_new_pass)
        except WaitTimeoutError:
            raise ShardError(
                f"data.cache.folder={self.settings.root}: another process has had its lock for a minute; end that one, "
                "or give another folder"
            ) from None
        except OSError as error:
            raise ShardError(f"data.cache.folder={self.settings.root}: {error}") from error
        for stem in finished:
            for ending in (".tar", ".npy"):
                finish(self.folder / f"{stem}{ending}")

    def _open_cached(self, name: str) -> int | None:
        try:
            found = os.open(self.folder / name, os.O_RDONLY)
        except FileNotFoundError:
            return None
        touch(found)
        return found

    def _download(self, name: str, size: int | None, check: Check | None, is_prefetch: bool) -> int:
        address, target, policy = f"{self.address}/{without_mark(name)}", self.folder / name, self.settings.retry_policy
        size = size or remote_size(address, policy) or 0
        if size > self._disk.limit:
            raise ShardError(f"data.cache.max_size={self.settings.max_size}: {address} alone has {size:,} bytes")
        seconds, idle = (0.0, IDLE) if is_prefetch else (2 * policy.max_seconds + 60, 0.0)
        with self._disk.reserve(target, size, seconds, idle) as reservation:
            try:
                return self._commit(download(address, reservation.path, policy, check), target, reservation)
            except RemoteError as error:
                # processes that wait for this one do not try themselves
                self._failure(name).write_text(str(error))
                raise as_shard_error(error) from error

    def _commit(self, found: Path, target: Path, reservation: Reservation) -> int:
        opened = os.open(found, os.O_RDONLY)  # before another process can evict it
        reservation.commit(found, target)
        self._failure(target.name).unlink(missing_ok=True)
        return opened

    def _failure(self, name: str) -> Path:
        return self.folder / f".{name}.failed"

    def _raise_if_failed(self, name: str, started: float) -> None:
        """Raise the error of another process that failed while this one waited for it."""
        with suppress(FileNotFoundError):
            if self._failure(name).stat().st_mtime >= started:
                raise ShardError(self._failure(name).read_text())

    def _progress(self, name: str) -> object:
        with suppress(FileNotFoundError):
            return [(path.name, path.stat().st_size) for path in self.folder.glob(f"{name}.*{PARTIAL}*")]
        return None


def with_mark(name: str, mark: int) -> str:
    """Return the name in the cache of a file, given with or without its suffix, of which others may have the name."""
    stem, dot, suffix = name.partition(".")
    return f"{stem}@{mark:08x}{dot}{suffix}"


def without_mark(name: str) -> str:
    """Return the name at the address of a file in the cache."""
    return re.sub(r"@[0-9a-f]+", "", name)


def touch(descriptor: int) -> None:
    """Update the time of use of a file."""
    if os.utime in os.supports_fd:
        with suppress(OSError):  # a read-only folder
            os.utime(descriptor)


@lru_cache(maxsize=64)
def _open_plan(folder: Path, process_id: int) -> ReadPlan:
    return ReadPlan(folder)
