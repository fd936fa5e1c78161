"""Downloads in the background: several at a time, by a process of their own where a loader has workers.

Threads of a worker would wait for its interpreter lock between two pieces of a file, as long as the worker prepares
images: a connection would not reach its bandwidth.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

from mim_lightning.data.shards.cache import NoSpaceError, ShardError

SPACE_POLL = 0.1  # seconds between two attempts to find space in the cache
PARENT_POLL = 1.0  # seconds between two looks whether the process that asks is alive


class Download(NamedTuple):
    reader: str  # who needs it; a stopped reader's downloads are dropped
    task: Callable[[], object] | None  # can be pickled; None: the reader stops
    connections: int = 1  # downloads at a time of the reader


class Prefetcher:
    """Starts downloads; a forked process starts its own."""

    def __init__(self) -> None:
        self._process_id, self._threads = -1, DownloadThreads()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._sender: Connection | None = None

    def put(self, download: Download, has_workers: bool) -> None:
        """Queue a download.

        Args:
            has_workers: other processes read the files, so another one may download them.
        """
        if self._process_id != os.getpid():
            self._process_id, self._threads, self._process = os.getpid(), DownloadThreads(), None
        if has_workers and sys.platform == "linux" and not multiprocessing.current_process().daemon:
            self._send(download)
        else:
            self._threads.put(download)

    def stop(self, reader: str) -> None:
        """Drop the downloads of a reader that did not start yet."""
        if self._process_id != os.getpid():  # it has none: those of its parent are no threads here
            return
        self._threads.put(Download(reader, None))
        if self._process is not None:
            self._send(Download(reader, None))

    def _send(self, download: Download) -> None:
        if self._process is None or not self._process.is_alive():
            context = multiprocessing.get_context("fork")
            receiver, self._sender = context.Pipe(duplex=False)
            self._process = context.Process(
                target=_download_all, args=(receiver, os.getpid()), name="downloads", daemon=True
            )
            self._process.start()
            receiver.close()
        assert self._sender is not None
        with suppress(BrokenPipeError):  # it was ended: the readers download for themselves
            self._sender.send(download)


class DownloadThreads:
    """Threads of each reader: one whose store is silent, or for which the cache has no space, delays no other."""

    def __init__(self) -> None:
        self._readers: dict[str, _ReaderThreads] = {}

    def put(self, download: Download) -> None:
        if download.task is not None:
            self._readers.setdefault(download.reader, _ReaderThreads()).put(download.task, download.connections)
        elif download.reader in self._readers:
            self._readers.pop(download.reader).stop()


class _ReaderThreads:
    """Threads that download what a reader needs, in order."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()  # None ends a thread
        self._num_threads, self._is_stopped = 0, False
        self._is_full = threading.Lock()

    def put(self, task: Callable[[], object], connections: int) -> None:
        self._queue.put(task)
        if self._num_threads < connections:
            self._num_threads += 1
            threading.Thread(target=self._work, name="prefetcher", daemon=True).start()

    def stop(self) -> None:
        self._is_stopped = True
        for _ in range(self._num_threads):
            self._queue.put(None)

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            while not self._is_stopped:
                try:
                    task()
                except NoSpaceError:
                    with self._is_full:  # one thread at a time: each attempt lists the cache
                        time.sleep(SPACE_POLL)
                    continue
                except (ShardError, OSError):  # the reader of the file will get the error
                    pass
                break


def _download_all(receiver: Connection, parent_id: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as workers do: the main process may need further batches
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    downloads = DownloadThreads()
    while os.getppid() == parent_id:
        if receiver.poll(PARENT_POLL):
            try:
                downloads.put(receiver.recv())
            except EOFError:
                break
    os._exit(0)
