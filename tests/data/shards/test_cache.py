"""The disk cache: files are downloaded once a machine, complete, within the size limit, also after failures."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mim_lightning.data.shards import disk_cache
from mim_lightning.data.shards.cache import CacheSettings, MissingError, ShardCache, ShardError
from mim_lightning.data.shards.disk_cache import DiskCache
from mim_lightning.data.shards.open_shards import OpenShards
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.io.locks import WaitTimeoutError, lock
from mim_lightning.io.retry import RetryPolicy
from tests.data.conftest import MakeSet
from tests.data.stores import FaultyStore, in_processes, serving, watch_disk_usage


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RetryPolicy, "pause", lambda *_: 0.02)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FaultyStore]:
    """A store of files a, b ... d of 1,000 bytes each."""
    folder = tmp_path / "store"
    folder.mkdir()
    for letter in "abcd":
        (folder / letter).write_bytes(letter.encode() * 1000)
    with serving(folder) as served:
        yield served


@pytest.fixture
def cache(store: FaultyStore, tmp_path: Path) -> Callable[..., ShardCache]:
    def make(max_size: int = 10_000, **options: float) -> ShardCache:
        settings = CacheSettings(str(tmp_path / "cache"), max_size, **({"timeout": 5, "retries": 1} | options))  # type: ignore[arg-type]
        return ShardCache(store.address, "set", settings)

    return make


def content(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


@pytest.mark.parametrize(
    ("text", "number"), [("20GB", 20 * 10**9), ("512MiB", 2**29), (123, 123), ("1.5 TB", 15 * 10**11), ("7k", 7000)]
)
def test_sizes_are_read(text: str | int, number: int) -> None:
    assert CacheSettings(max_size=text).limit == number


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_size": "much"}, "data.cache.max_size=much"),
        ({"max_size": "3iB"}, "data.cache.max_size=3iB"),
        ({"max_size": 0}, "data.cache.max_size=0"),
        ({"timeout": 0}, "data.cache.timeout=0"),
        ({"retries": -1}, "data.cache.retries=-1"),
        ({"connections": 0}, "data.cache.connections=0"),
        ({"prefetch_shards": -1}, "data.cache.prefetch_shards=-1"),
    ],
)
def test_impossible_settings_are_refused(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        CacheSettings(**options)


def test_fetched_once_and_kept(store: FaultyStore, cache: Callable[..., ShardCache], tmp_path: Path) -> None:
    for _ in range(3):
        assert content(cache().open("a")) == b"a" * 1000
    assert store.asked["a"] == 1 + 1  # one more request for its size, which no index has here
    assert names(tmp_path / "cache") == {"a"}
    assert content(cache().open("b", size=1000)) == b"b" * 1000
    assert store.asked["b"] == 1


def test_several_processes_fetch_a_file_once(store: FaultyStore, cache: Callable[..., ShardCache]) -> None:
    for letter in "abcd":
        store.fail(letter, "slow")

    def read(number: int) -> None:
        for letter in "abcd" if number % 2 else "dcba":
            assert content(cache().open(letter, size=1000)) == letter.encode() * 1000

    assert in_processes(read, 4) == [0] * 4
    assert dict(store.asked) == dict.fromkeys("abcd", 1)


def test_the_least_recently_used_is_evicted(cache: Callable[..., ShardCache], tmp_path: Path) -> None:
    small = cache(2500)
    first = small.open("a", 1000)
    os.close(small.open("b", 1000))
    time.sleep(0.02)
    os.close(small.open("a", 1000))
    os.close(small.open("c", 1000))
    assert names(tmp_path / "cache") == {"a", "c"}
    os.close(small.open("d", 1000))
    assert names(tmp_path / "cache") == {"c", "d"}
    assert content(first) == b"a" * 1000, "who has a file open reads on"


def test_a_file_of_unknown_size_evicts_others(
    store: FaultyStore, cache: Callable[..., ShardCache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mim_lightning.data.shards.cache.remote_size", lambda *_: None)
    for letter in "abcd":
        os.close(cache(2500).open(letter))
        time.sleep(0.02)
    assert names(tmp_path / "cache") == {"c", "d"}


def test_a_file_larger_than_the_cache_is_refused(cache: Callable[..., ShardCache]) -> None:
    with pytest.raises(ShardError, match=r"data.cache.max_size=999: http.*/a alone has 1,000 bytes"):
        cache(999).open("a", 1000)


def test_prefetched_files_evict_no_files_in_use(cache: Callable[..., ShardCache], tmp_path: Path) -> None:
    small = cache(2500)
    for letter in "ab":
        os.close(small.open(letter, 1000))
    with pytest.raises(ShardError, match="for space in"):
        small.open("c", 1000, is_prefetch=True)
    long_ago = time.time() - 100
    os.utime(tmp_path / "cache" / "set" / "a", (long_ago, long_ago))
    os.close(small.open("c", 1000, is_prefetch=True))
    assert names(tmp_path / "cache") == {"b", "c"}


def test_a_folder_that_cannot_be_written_is_named(store: FaultyStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    settings = CacheSettings(str(tmp_path / "file"))
    with pytest.raises(ShardError, match=f"data.cache.folder={tmp_path}/file"):
        ShardCache(store.address, "set", settings).open("a", 1000)


def test_a_lock_that_another_process_keeps_is_named(
    cache: Callable[..., ShardCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(*_: object) -> None:
        raise WaitTimeoutError

    monkeypatch.setattr("mim_lightning.data.shards.cache._open_plan", wait)
    with pytest.raises(ShardError, match=r"data.cache.folder=.*: another process has had its lock"):
        cache().plan("reader", ["a"], [], is_new_pass=True)


def test_a_missing_file_is_asked_for_once(store: FaultyStore, cache: Callable[..., ShardCache]) -> None:
    with pytest.raises(MissingError, match=r"/z: there is no such file"):
        cache().open("z", 5)
    assert store.asked["z"] == 1


@pytest.mark.parametrize("fault", ["error", "cut", "stall", "silent", "short"])
def test_a_transient_error_is_not_noticed(store: FaultyStore, cache: Callable[..., ShardCache], fault: str) -> None:
    def check(path: Path, _: int) -> None:
        if path.stat().st_size != 1000:
            raise ValueError("too short")

    store.fail("a", fault, times=1)
    # on a busy machine the store may be silent for longer than it is waited for: more than one try may be in vain
    assert content(cache(timeout=0.5, retries=9).open("a", 1000, check)) == b"a" * 1000
    assert store.asked["a"] >= 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("error", "500"),
        ("cut", "/a: .*tried 2 times"),
        ("stall", "sent nothing for 0.3 s .tried 2 times"),
        ("silent", "sent nothing for 0.3 s .tried 2 times"),
        ("refused", "403"),
    ],
)
def test_a_persistent_error_is_reported_in_time(
    store: FaultyStore, cache: Callable[..., ShardCache], fault: str, words: str, tmp_path: Path
) -> None:
    store.fail("a", fault)
    with pytest.raises(ShardError, match=words) as caught:
        cache(timeout=0.3 if "nothing" in words else 20).open("a", 1000)
    assert f"{store.address}/a: " in str(caught.value) and "\n" not in str(caught.value)
    assert names(tmp_path / "cache") == set(), "nothing is left behind"


def test_a_slow_store_is_waited_for(store: FaultyStore, cache: Callable[..., ShardCache]) -> None:
    """The limit is for silence, not for the whole: five pieces come 0.25 s apart."""
    store.fail("a", "slow")
    assert content(cache(timeout=1, retries=0).open("a", 1000)) == b"a" * 1000


def test_waiting_for_a_failed_download_does_not_retry_it(store: FaultyStore, cache: Callable[..., ShardCache]) -> None:
    store.fail("a", "silent")
    barrier = multiprocessing.get_context("fork").Barrier(4)

    def read(number: int) -> None:
        barrier.wait(60)  # one that starts after the failure tries for itself
        with pytest.raises(ShardError, match="sent nothing"):
            cache(timeout=0.4).open("a", 1000)

    assert in_processes(read, 4) == [0] * 4
    assert store.asked["a"] == 2, "one process tried, twice"


def test_killed_while_fetching(store: FaultyStore, cache: Callable[..., ShardCache], tmp_path: Path) -> None:
    """A partial file of a killed process does not count, is removed, and is not waited for."""
    store.fail("a", "stall", times=1)
    process = multiprocessing.get_context("fork").Process(target=cache(timeout=60).open, args=("a", 1000))
    process.start()
    folder = tmp_path / "cache" / "set"
    while not list(folder.glob("a.*.try0")):
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(folder.glob("a.*.partial"))
    assert content(cache(1000).open("b", 1000)) == b"b" * 1000, "its reservation would leave no space"
    assert content(cache().open("a", 1000)) == b"a" * 1000
    assert names(folder) == {"a", "b"}


def test_a_lock_is_one_process_s_at_a_time_and_leaves_no_file(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count(_: int) -> None:
        for _ in range(50):
            with lock(tmp_path / ".lock", 30, removes=True):
                counter.write_text(str(int(counter.read_text()) + 1))

    assert in_processes(count, 4) == [0] * 4
    assert counter.read_text() == "200"
    assert not (tmp_path / ".lock").exists()


def test_a_lock_that_is_held_too_long_is_given_up(tmp_path: Path) -> None:
    with (
        lock(tmp_path / ".lock", 1, removes=True),
        pytest.raises(WaitTimeoutError),
        lock(tmp_path / ".lock", 0.1, removes=True),
    ):
        pass


def test_disk_space_is_waited_for_while_others_download(tmp_path: Path) -> None:
    cache_folder = DiskCache(tmp_path, 1500)
    with cache_folder.reserve(tmp_path / "set" / "a", 1000, 1):
        with pytest.raises(WaitTimeoutError), cache_folder.reserve(tmp_path / "set" / "b", 1000, 0.1):
            pass
        others = threading.Thread(target=_reserve, args=(cache_folder, tmp_path / "set" / "c"))
        others.start()
        time.sleep(0.05)
        assert others.is_alive()
    others.join(10)
    assert not others.is_alive()
    assert names(tmp_path) == set()


def test_a_file_that_appears_during_the_count_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_folder, target, counts, settling = (
        DiskCache(tmp_path, 1500),
        tmp_path / "set" / "a",
        disk_cache._is_counted,
        [],
    )

    with cache_folder.reserve(target, 1000, 1) as reservation:
        found = reservation.path.with_name(f"{reservation.path.name}.try0")
        found.write_bytes(b"a" * 1000)

        def count_slowly(path: Path) -> bool:
            if not settling:
                settling.append(threading.Thread(target=reservation.commit, args=(found, target)))
                settling[0].start()
                settling[0].join(0.2)  # the folder was listed, and the file is not in that list
            return counts(path)

        monkeypatch.setattr(disk_cache, "_is_counted", count_slowly)
        with pytest.raises(WaitTimeoutError), cache_folder.reserve(tmp_path / "set" / "b", 1000, 0.0, idle=60):
            pass
        settling[0].join()
    assert names(tmp_path) == {"a"}


def _reserve(cache_folder: DiskCache, path: Path) -> None:
    with cache_folder.reserve(path, 1000, 10):
        pass


@pytest.mark.parametrize("num_shards", [2.5, 5.5])
def test_the_bound_holds_for_two_ranks_of_two_workers(make_set: MakeSet, tmp_path: Path, num_shards: float) -> None:
    """Four processes read everything twice through a cache of a part of it; none meets another's eviction."""
    written = make_set(90, 9)
    limit = int(num_shards * max(path.stat().st_size for path in written.folder.glob("*.tar")))  # type: ignore[union-attr]
    cache = tmp_path / "cache"
    with serving(Path(written.folder)) as store:
        shards = ShardSet(store.address, CacheSettings(str(cache), limit, timeout=20))

        def read(number: int) -> None:
            for start in (0, 45):
                for sample_num in [(start + number * 20 + step) % 90 for step in range(90)]:
                    assert shards.read([sample_num])[0].query_id == f"q{sample_num}"
            held = [path for path in open_paths() if path.endswith(".tar (deleted)")]
            assert len(held) <= 1, "evicted files use disk space while they are open"

        with watch_disk_usage(cache) as sizes:
            assert in_processes(read, 4) == [0] * 4
    assert 0 < max(sizes) <= limit
    assert not list(cache.rglob("*.partial*"))


def open_paths() -> list[str]:
    """Return what this process has open."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # what lists the folder
            found.append(os.readlink(path))
    return found


def test_as_many_shards_stay_open_as_were_used_last() -> None:
    made: list[int] = []

    class Shard:
        is_gone = False

    def get(shards: OpenShards, key: int) -> object:
        return shards.get(key, lambda: made.append(key) or Shard())  # type: ignore[func-returns-value, arg-type, return-value]

    shards = OpenShards(max_open=2)
    for key in (1, 2, 1, 3, 1, 2):
        get(shards, key)
    assert made == [1, 2, 3, 2]
    get(shards, 1).is_gone = True  # type: ignore[attr-defined]
    get(shards, 4)
    get(shards, 1)
    assert made == [1, 2, 3, 2, 4, 1], "evicted files are not held open"
