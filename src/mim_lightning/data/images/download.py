"""Images at URLs, downloaded over many connections into a cache on disk.

Files appear in the cache complete or not at all: an interrupted download keeps what it has, and any number of processes
may share a cache.
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

MAX_CONSECUTIVE_FAILURES = 50  # of a host, retries included: its other URLs are not tried


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
    """A cache of downloads, and the failures of this run; cheap to send to another process."""

    def __init__(self, settings: DownloadSettings) -> None:
        self.settings = settings
        self.failures: dict[str, str] = {}  # URL -> reason; not kept on disk: the next run tries again

    def read(self, url: str) -> bytes:
        """Return the file at a URL, from the cache if it is there.

        Raises:
            OSError: it cannot be downloaded, or could not be before in this run.
            ValueError: the client of the protocol is not installed.
        """
        path = self._path(url)
        if path is not None:
            with suppress(FileNotFoundError):
                return path.read_bytes()
        if url in self.failures:
            raise OSError(self.failures[url])
        return self._fetch(url, Event())

    def fetch_all(self, urls: Iterable[str]) -> dict[str, str]:
        """Download what is not in the cache yet; return the URLs that failed in this run, with reasons.

        Raises:
            ValueError: the client of a protocol is not installed.
            OSError: the cache cannot be written.
        """
        wanted = list(dict.fromkeys(urls))
        missing = [url for url in wanted if url not in self.failures and not self._is_kept(url)]
        if missing and self.settings.cache is not None:
            with ProgressMeter(len(missing), verb="requested", noun="images", label="downloads") as progress:
                _DownloadPool(self, missing, progress).run()
        return {url: self.failures[url] for url in wanted if url in self.failures}

    def _fetch(self, url: str, stop: Event) -> bytes:
        policy, max_bytes = self.settings.retry_policy, self.settings.max_bytes
        try:
            data = read_url(url, policy, max_bytes, self.settings.private_addresses, stop)
        except PrivateHostError as error:
            self.failures[url] = f"{error}; data.source.download.private_addresses=true allows it"
            raise PrivateHostError(self.failures[url]) from error
        except RemoteError as error:
            self.failures[url] = str(error)
            raise
        path = self._path(url)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, is_synced=False) as partial:
                partial.write_bytes(data)
        return data

    def _is_kept(self, url: str) -> bool:
        path = self._path(url)
        return path is not None and path.is_file()

    def _path(self, url: str) -> Path | None:
        if self.settings.cache is None:
            return None
        digest = hashlib.blake2b(url.encode(), digest_size=16).hexdigest()
        return Path(self.settings.cache) / digest[:2] / digest


class _DownloadPool:
    """Threads that each download one URL after the other until none is left."""

    def __init__(self, downloads: Downloads, urls: list[str], progress: ProgressMeter) -> None:
        self.downloads, self.settings, self.progress = downloads, downloads.settings, progress
        self._left, self._lock, self._stop = iter(urls), Lock(), Event()
        self._failures_by_host: Counter[str] = Counter()  # host -> URLs in a row whose every try failed
        self._num_done, self._num_bytes = 0, 0

    def run(self) -> None:
        with ThreadPoolExecutor(self.settings.num_connections, "download") as pool:
            threads = [pool.submit(self._download_next) for _ in range(self.settings.num_connections)]
            try:
                wait(threads, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()  # after an interruption or an error: threads that wait for a retry end
        for thread in threads:
            thread.result()

    def _download_next(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                url = next(self._left, None)
            if url is None:
                return
            num_bytes = self._try(url)
            with self._lock:
                self._num_done, self._num_bytes = self._num_done + 1, self._num_bytes + num_bytes
                self.progress.update(self._num_done, self._num_bytes)

    def _try(self, url: str) -> int:
        """Download one URL; return its size in bytes."""
        num_bytes = 0
        host = url.split("/", 3)[2]
        if self._failures_by_host[host] >= MAX_CONSECUTIVE_FAILURES:
            self.downloads.failures[url] = f"not tried: {host} failed {MAX_CONSECUTIVE_FAILURES} times in a row"
            return num_bytes
        try:
            num_bytes = len(self.downloads._fetch(url, self._stop))
        except RetriesExhaustedError:
            self._failures_by_host[host] += 1
        except RemoteError:
            self._failures_by_host[host] = 0
        else:
            self._failures_by_host[host] = 0
        if self._stop.is_set():
            self.downloads.failures.pop(url, None)  # it was given up because of `stop`: no failure
        return num_bytes
