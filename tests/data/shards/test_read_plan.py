"""What is evicted first: what no process will read, then what is read latest; never what is needed, for a prefetch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from mim_lightning.data.shards import disk_cache
from mim_lightning.data.shards.disk_cache import DiskCache
from mim_lightning.data.shards.read_plan import ReadPlan, finish, read_plans
from mim_lightning.io.locks import WaitTimeoutError


def put(folder: Path, *names: str, age: float = 0.0) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (time.time() - age, time.time() - age))


def remaining(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.glob("*/[!.]*")}


def make_space(folder: Path, num_files: int, idle: float = 0.0) -> None:
    """Evict until so many files of 100 bytes fit into a cache of 1,000."""
    with DiskCache(folder, 1000).reserve(folder / "x" / "new", 100 * num_files, 0, idle):
        pass


def test_the_order_of_eviction(tmp_path: Path) -> None:
    plan = ReadPlan(tmp_path)
    put(tmp_path, "gone/1.tar", "gone/2.tar", age=5)
    put(tmp_path, "train/1.tar", "train/2.tar", "train/3.tar", "train/4.tar", "train/5.tar", age=50)
    finish(tmp_path / "train/5.tar")  # in the pass before
    time.sleep(0.01)
    plan.update("reader", "train", ["1", "2"], is_new_pass=True)
    put(tmp_path, "train/3.tar")
    time.sleep(0.01)
    finish(tmp_path / "train/3.tar")
    expected = [
        "gone/1.tar",  # of a set that no process reads, used longest ago
        "gone/2.tar",
        "train/3.tar",  # finished in this pass: needed in the next one at the earliest
        "train/4.tar",  # not read yet in this pass
        "train/5.tar",
        "train/2.tar",  # needed, but later than the other
        "train/1.tar",
    ]
    for num, name in enumerate(expected):
        before = remaining(tmp_path)
        make_space(tmp_path, 4 + num)
        assert before - remaining(tmp_path) == {name}, name


def test_a_prefetch_evicts_nothing_that_is_needed(tmp_path: Path) -> None:
    ours, theirs = ReadPlan(tmp_path), ReadPlan(tmp_path)
    put(tmp_path, *[f"train/{number}.tar" for number in range(9)], age=100)
    ours.update("reader", "train", ["0", "1", "2"], is_new_pass=True)
    theirs.update("reader", "train", ["2", "3", "4"], is_new_pass=True)
    put(tmp_path, "train/5.tar", "train/6.tar")
    finish(tmp_path / "train/6.tar")
    make_space(tmp_path, 4, idle=30)
    assert remaining(tmp_path) == {f"train/{number}.tar" for number in range(6)}
    with pytest.raises(WaitTimeoutError):
        make_space(tmp_path, 5, idle=30)
    ours.update("reader", "train", ["2"], is_new_pass=False)
    make_space(tmp_path, 6, idle=30)
    assert remaining(tmp_path) == {f"train/{number}.tar" for number in (2, 3, 4, 5)}


def test_a_cache_that_is_too_small_is_named_once_by_all_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = ReadPlan(tmp_path)
    put(tmp_path, *[f"train/{number}.tar" for number in range(10)], age=100)
    plan.update("reader", "train", [str(number) for number in range(4)], is_new_pass=True)
    make_space(tmp_path, 6)
    assert not caplog.records, "what is needed fits"
    plan.update("reader", "train", [str(number) for number in range(20)], is_new_pass=False)
    for _ in range(2):
        make_space(tmp_path, 7)
        put(tmp_path, "train/2.tar", "train/3.tar")
        monkeypatch.setattr(disk_cache, "_WARNED", set())  # as another process
    (found,) = (record.getMessage() for record in caplog.records)
    assert found.startswith(f"{tmp_path}: data.cache.max_size=1kB is less than what is read at a time, about 2kB: ")
    ReadPlan(tmp_path).update("reader", "val", ["0"], is_new_pass=True)
    make_space(tmp_path, 9)
    assert len(caplog.records) == 2, "a run that began later has not been told"


def test_a_plan_ends_with_its_process(tmp_path: Path) -> None:
    def plan() -> None:
        ReadPlan(tmp_path).update("reader", "train", ["0"], is_new_pass=True)
        os.write(write_end, b"!")
        time.sleep(60)

    read_end, write_end = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=plan)
    process.start()
    os.read(read_end, 1)
    put(tmp_path, "train/0.tar", age=100)
    with pytest.raises(WaitTimeoutError):
        make_space(tmp_path, 10, idle=30)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    make_space(tmp_path, 10, idle=30)
    assert not remaining(tmp_path)
    assert not list(tmp_path.glob(".*plan*")), "and leaves no file"
    assert not read_plans(tmp_path)._needed
