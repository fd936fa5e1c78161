"""Downloads of one reader run while those of another wait, and end with their reader."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from mim_lightning.data.shards.cache import NoSpaceError
from mim_lightning.data.shards.prefetcher import Download, DownloadThreads

PATIENCE = 60  # seconds after which a test gives up


def find_no_space() -> None:
    raise NoSpaceError


@pytest.mark.parametrize("is_silent", [True, False])
def test_a_reader_that_waits_delays_no_other(is_silent: bool) -> None:
    """Its store is silent, or the cache has no space for its files."""
    downloads, answer, is_done = DownloadThreads(), threading.Event(), threading.Event()
    waiting: Callable[[], object] = answer.wait if is_silent else find_no_space
    for _ in range(5):
        downloads.put(Download("waiting", waiting, connections=2))
    downloads.put(Download("other", is_done.set, connections=2))
    assert is_done.wait(PATIENCE)
    answer.set()
    for reader in ("waiting", "other"):
        downloads.put(Download(reader, None))


def test_a_reader_has_its_number_of_threads_and_they_end_with_it() -> None:
    downloads, answer, used, barrier = DownloadThreads(), threading.Event(), [], threading.Barrier(3)

    def download() -> None:
        used.append(threading.current_thread())
        barrier.wait(PATIENCE)
        answer.wait(PATIENCE)

    for _ in range(4):
        downloads.put(Download("reader", download, connections=2))
    barrier.wait(PATIENCE)  # two have begun
    downloads.put(Download("reader", None))
    answer.set()
    for thread in used:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(set(used)) == len(used) == 2, "what had not begun is dropped"
