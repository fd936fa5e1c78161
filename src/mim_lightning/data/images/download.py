"""Pictures at addresses, downloaded by many connections at once into a cache on disk.

Addresses come in, bytes go out, or into files of the cache, which appear whole or not at all: whatever interrupts a
download, what was fetched stays, and any number of processes may share it. `images` calls it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

from mim_lightning.display.progress import ProgressMeter
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.remote import read_url
from mim_lightning.io.retry import PrivateHostError, RemoteError, RetriesExhaustedError, RetryPolicy

HOPELESS = 50  # addresses of one host in a row that failed for good: the others of this host are not tried


@dataclass(frozen=True)
class DownloadSettings:
    """How images at URLs are downloaded."""

    cache: str | None = None  # folder; None: nothing is cached
    num_connections: int = 16  # at the same time
    timeout: float = 20.0  # seconds for one try of one image
    retries: int = 3  # after the first try, if another may succeed
    backoff: float = 0.5  # seconds before the first retry, doubled for each further one
    max_bytes: int = 50_000_000  # a larger file is not downloaded to its end
    private_addresses: bool = False  # True: also from this machine and private networks

    def __post_init__(self) -> None:
        least = {"num_connections": 1, "timeout": 1e-3, "retries": 0, "backoff": 0, "max_bytes": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or value < bound:
                raise ValueError(f"data.source.download.{name}={value}: must be a number, at least {bound:g}")

    @property
    def retry_policy(self) -> RetryPolicy:
        return RetryPolicy(self.timeout, self.retries, self.backoff, max_backoff=math.inf)


class Downloads:
    """The cache, and what could not be fetched in this run; cheap to send to another process."""

    def __init__(self, settings: DownloadSettings) -> None:
        self.settings = settings
        self.failures: dict[str, str] = {}  # address -> reason; not kept on disk: the next run tries again

    def read(self, address: str) -> bytes:
        """Return the file at an address, from the cache if it is there.

        Raises:
            OSError: it cannot be fetched, or could not be before in this run.
            ValueError: what the protocol needs is not installed.
        """
        path = self._path(address)
        if path is not None:
            with suppress(FileNotFoundError):
                return path.read_bytes()
        if address in self.failures:
            raise OSError(self.failures[address])
        return self._fetch(address, Event())

    def fetch_all(self, addresses: Iterable[str]) -> dict[str, str]:
        """Fetch what is not in the cache yet; return the addresses that failed in this run, with reasons.

        Raises:
            ValueError: what a protocol needs is not installed.
            OSError: the cache cannot be written.
        """
        wanted = list(dict.fromkeys(addresses))
        missing = [address for address in wanted if address not in self.failures and not self._is_kept(address)]
        if missing and self.settings.cache is not None:
            with ProgressMeter(len(missing), verb="asked for", noun="pictures", label="downloads") as progress:
                _Crew(self, missing, progress).work()
        return {address: self.failures[address] for address in wanted if address in self.failures}

    def _fetch(self, address: str, stop: Event) -> bytes:
        policy, max_bytes = self.settings.retry_policy, self.settings.max_bytes
        try:
            data = read_url(address, policy, max_bytes, self.settings.private_addresses, stop)
        except PrivateHostError as error:
            self.failures[address] = f"{error}; data.source.download.private_addresses=true allows it"
            raise PrivateHostError(self.failures[address]) from error
        except RemoteError as error:
            self.failures[address] = str(error)
            raise
        path = self._path(address)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, is_synced=False) as partial:
                partial.write_bytes(data)
        return data

    def _is_kept(self, address: str) -> bool:
        path = self._path(address)
        return path is not None and path.is_file()

    def _path(self, address: str) -> Path | None:
        if self.settings.cache is None:
            return None
        digest = hashlib.blake2b(address.encode(), digest_size=16).hexdigest()
        return Path(self.settings.cache) / digest[:2] / digest


class _Crew:
    """Threads that fetch one address after the other until none is left."""

    def __init__(self, downloads: Downloads, addresses: list[str], progress: ProgressMeter) -> None:
        self.downloads, self.settings, self.progress = downloads, downloads.settings, progress
        self._left, self._lock, self._stop = iter(addresses), Lock(), Event()
        self._silent: Counter[str] = Counter()  # host -> addresses in a row without an answer
        self._num_done, self._num_bytes = 0, 0

    def work(self) -> None:
        with ThreadPoolExecutor(self.settings.num_connections, "download") as pool:
            threads = [pool.submit(self._run) for _ in range(self.settings.num_connections)]
            try:
                wait(threads, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()  # after an interruption or an error: those that wait for a retry go home
        for thread in threads:
            thread.result()

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                address = next(self._left, None)
            if address is None:
                return
            num_bytes = self._try(address)
            with self._lock:
                self._num_done, self._num_bytes = self._num_done + 1, self._num_bytes + num_bytes
                self.progress.update(self._num_done, self._num_bytes)

    def _try(self, address: str) -> int:
        """Fetch one address; return how many bytes came."""
        num_bytes = 0
        host = address.split("/", 3)[2]
        if self._silent[host] >= HOPELESS:
            self.downloads.failures[address] = f"not tried: {host} failed {HOPELESS} times in a row"
            return num_bytes
        try:
            num_bytes = len(self.downloads._fetch(address, self._stop))
        except RetriesExhaustedError:
            self._silent[host] += 1
        except RemoteError:
            self._silent[host] = 0
        else:
            self._silent[host] = 0
        if self._stop.is_set():
            self.downloads.failures.pop(address, None)  # it was given up, it did not fail
        return num_bytes
