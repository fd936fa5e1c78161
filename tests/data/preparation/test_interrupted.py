"""Preparation with real processes: a killed one is resumed, finished shards are kept, no work is done twice."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.process import BaseProcess as Process
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mim_lightning.data.images.download import DownloadSettings
from mim_lightning.data.manifest.manifest import ManifestSource
from mim_lightning.data.preparation import destination, local_engine, preparation
from mim_lightning.data.preparation import staging as partial
from mim_lightning.data.preparation.local_engine import _num_workers
from mim_lightning.data.preparation.preparation import prepare_shards
from mim_lightning.data.preparation.prepared import ShardSettings, is_prepared
from mim_lightning.data.preparation.staging import staging_path
from mim_lightning.data.shards.set_writer import MARKERS
from mim_lightning.io.store import Store
from tests.data.conftest import jpeg, write_csv

SETTINGS = ShardSettings(samples_per_shard=4, max_image_side=200)
NUM_PICTURES = 40
Start = Callable[..., Process]


class Gate(ThreadingHTTPServer):
    """Serves the shop's images until it closes: then each request waits, and the test can interrupt its process."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Pictures)
        self.is_open, self.lock = threading.Event(), threading.Lock()
        self.num_left = self.num_waiting = 0
        self.is_open.set()

    def open(self) -> None:
        self.is_open.set()

    def close_after(self, num_pictures: int) -> None:
        self.num_left = num_pictures
        self.is_open.clear()

    def wait(self) -> None:
        with self.lock:
            self.num_left -= 1
            is_free = self.num_left >= 0 or self.is_open.is_set()
            self.num_waiting += not is_free
        if not is_free:
            self.is_open.wait()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Handle the error of a client that was killed."""


class _Pictures(BaseHTTPRequestHandler):
    server: Gate

    def do_GET(self) -> None:
        self.server.wait()
        data = jpeg(int(self.path[1:]), 220, 250)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""


@pytest.fixture
def gate() -> Iterator[Gate]:
    server = Gate()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.open()
    server.shutdown()
    server.server_close()


@pytest.fixture
def source(gate: Gate, tmp_path: Path) -> ManifestSource:
    """A shop of 20 products with two images each, and 120 queries, whose images are behind the gate."""
    root = tmp_path / "shop"
    root.mkdir()
    pictures = [f"http://127.0.0.1:{gate.server_port}/{number}" for number in range(NUM_PICTURES)]
    products = [
        {"product_id": f"p{i}", "image": f"{pictures[i]}|{pictures[i + 20]}", "title": "x", "category": "c"}
        for i in range(20)
    ]
    queries = [
        {
            "query_id": f"q{i}",
            "split": "val" if i % 6 == 0 else "train",
            "image": pictures[i % NUM_PICTURES],
            "product_id": f"p{i % 20}",
        }
        for i in range(120)
    ]
    tables = write_csv(root / "products.csv", products), write_csv(root / "queries.csv", queries)
    return ManifestSource(*map(str, tables), download=DownloadSettings(private_addresses=True))


@pytest.fixture
def start(source: ManifestSource, gate: Gate, tmp_path: Path) -> Iterator[Start]:
    """Return a function that prepares `out` in a process of its own, and has it wait amid the training rows."""
    started = []

    def run(num_workers: int = 1) -> Process:
        if not started:
            gate.close_after(2 * NUM_PICTURES + 30)  # the check, the catalog, and a few rows
        context = multiprocessing.get_context("fork")  # has imported everything already
        process = context.Process(target=_prepare, args=(source, tmp_path / "out", num_workers))
        process.start()
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.join()


def _prepare(source: ManifestSource, folder: Path, num_workers: int) -> None:
    log = folder.with_name(f"log-{os.getpid()}").open("w")
    os.dup2(log.fileno(), 2)
    sys.stderr = log
    shut_down = ProcessPoolExecutor.shutdown

    def announce_and_shut_down(*arguments: Any, **options: Any) -> None:
        folder.with_name("stopping").touch()
        shut_down(*arguments, **options)

    ProcessPoolExecutor.shutdown = announce_and_shut_down  # type: ignore[method-assign]
    prepare_shards(source, folder, SETTINGS, num_workers=num_workers)


def log_of(process: Process, folder: Path) -> str:
    path = folder.with_name(f"log-{process.pid}")
    return path.read_text() if path.exists() else ""


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def finished(folder: Path) -> set[str]:
    """Return the receipts, by set and shard."""
    receipts = staging_path(folder) / "receipts"
    return {str(path.relative_to(receipts)).split("-")[0] for path in receipts.rglob("*.npz")}


def wait_until(condition: Callable[[], bool], process: Process | None = None, timeout: float = 120) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        assert process is None or process.is_alive(), "ended too early"
        time.sleep(0.005)


def end(process: Process) -> None:
    process.kill()  # -9
    process.join()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_and_started_again(
    source: ManifestSource, gate: Gate, start: Start, tmp_path: Path, num_workers: int
) -> None:
    folder = tmp_path / "out"
    process = start(num_workers=num_workers)
    wait_until(lambda: gate.num_waiting == num_workers, process)
    assert process.pid is not None
    workers = children_of(process.pid)
    end(process)
    wait_until(lambda: not any(map(is_alive, workers)))
    done = finished(folder)
    num_shards = 10 + 25 + 5
    assert 6 <= len(done) < num_shards and not is_prepared(folder) and not folder.exists()
    tars = {name: staging_path(folder) / f"{name}.tar" for name in done}
    before = {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in tars.items()}
    gate.open()

    prepare_shards(source, folder, SETTINGS, num_workers=1)
    after = {name: (folder / f"{name}.tar").stat() for name in done}
    assert {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in after.items()} == before
    whole = tmp_path / "whole"
    prepare_shards(source, whole, SETTINGS, num_workers=1)
    assert files_of(folder) == files_of(whole)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_the_number_of_processes_changes_nothing(source: ManifestSource, tmp_path: Path) -> None:
    for num_workers in (0, 2):
        prepare_shards(source, tmp_path / f"out{num_workers}", SETTINGS, num_workers=num_workers)
    assert files_of(tmp_path / "out0") == files_of(tmp_path / "out2")
    names = {Path(name).name for name in files_of(tmp_path / "out0")}
    assert {"index.json", "settings.json", "skipped.csv", "keys.npy", "000000.tar"} <= names
    assert not names & {"making.json", "lock", "pictures.jsonl"}


def test_a_shard_of_other_rows_or_another_size_is_written_again(
    source: ManifestSource, gate: Gate, start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    process = start()
    wait_until(lambda: gate.num_waiting == 1, process)
    end(process)
    gate.open()
    work = staging_path(folder)
    (work / "catalogue" / "000002.tar").write_bytes(b"cut")
    other = work / "catalogue" / "000003.tar"
    other.write_bytes(other.read_bytes()[::-1])
    receipt = next((work / "receipts" / "catalogue").glob("000003-*"))
    receipt.rename(receipt.with_name(receipt.name.rsplit("-", 1)[0] + "-0123456789abcdef.npz"))
    prepare_shards(source, folder, SETTINGS, num_workers=1)
    prepare_shards(source, tmp_path / "whole", SETTINGS, num_workers=1)
    assert files_of(folder) == files_of(tmp_path / "whole")


def test_what_an_older_version_left_unfinished_is_started_over(source: ManifestSource, tmp_path: Path) -> None:
    work = staging_path(tmp_path / "out")
    for name in ("receipts/catalogue/000000-4-10-0123456789abcdef.npz", "catalogue/000000.tar", "catalogue/000099.tar"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(b"old")
    for name in ("making.json", "pictures.jsonl"):
        (work / name).write_text("{}")
    prepare_shards(source, tmp_path / "out", SETTINGS, num_workers=1)
    prepare_shards(source, tmp_path / "whole", SETTINGS, num_workers=1)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_unfinished_preparation_of_other_data_is_kept(
    source: ManifestSource, gate: Gate, start: Start, tmp_path: Path
) -> None:
    folder, others = tmp_path / "out", ShardSettings(samples_per_shard=7, max_image_side=200)
    process = start()
    wait_until(lambda: gate.num_waiting == 1, process)
    with pytest.raises(ValueError, match=r"process .* is preparing it with samples_per_shard=4, this command has 7"):
        prepare_shards(source, folder, others)
    end(process)
    gate.open()
    done = finished(folder)
    with pytest.raises(
        ValueError, match=r"unfinished preparation with samples_per_shard=4, this command has 7; .*overwrite=true"
    ):
        prepare_shards(source, folder, others)
    assert finished(folder) == done
    assert prepare_shards(source, folder, others, overwrite=True).catalog().sizes == [7, 7, 7, 7, 6, 6]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_same_work_is_waited_for(
    source: ManifestSource,
    gate: Gate,
    start: Start,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "out"
    process = start()
    wait_until(lambda: gate.num_waiting == 1, process)
    inode = staging_path(folder).stat().st_ino
    sleep = time.sleep
    monkeypatch.setattr(partial.time, "sleep", lambda seconds: (gate.open(), sleep(seconds)))
    found = prepare_shards(source, folder, SETTINGS)
    assert "is preparing it; waiting" in capsys.readouterr().err
    process.join(timeout=120)
    assert process.exitcode == 0
    assert folder.stat().st_ino == inode  # the other one's
    assert len(found.catalog()) == 40


def test_the_successor_of_a_killed_process_resumes(gate: Gate, start: Start, tmp_path: Path) -> None:
    """A process that waits takes over when the one it waits for is killed."""
    folder = tmp_path / "out"
    first = start()
    wait_until(lambda: gate.num_waiting == 1, first)
    second = start()
    wait_until(lambda: "waiting" in log_of(second, folder), second)
    end(first)
    gate.open()
    second.join(timeout=120)
    assert second.exitcode == 0
    assert is_prepared(folder) and "before)" in log_of(second, folder)


def test_ctrl_c_keeps_finished_work(gate: Gate, start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = start(num_workers=2)
    assert process.pid is not None
    wait_until(lambda: gate.num_waiting == 2, process)  # both workers, each amid a shard
    done, workers = finished(folder), children_of(process.pid)
    os.kill(process.pid, signal.SIGINT)
    wait_until((tmp_path / "stopping").exists)  # its workers know when they continue
    gate.open()
    process.join(timeout=120)
    assert process.exitcode
    wait_until(lambda: not any(map(is_alive, workers)))
    assert len(done) >= 10 and finished(folder) == done and not folder.exists()
    again = start()
    again.join(timeout=120)
    assert again.exitcode == 0 and is_prepared(folder) and "before)" in log_of(again, folder)


def test_a_worker_that_is_killed_is_an_error_of_one_line(gate: Gate, start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = start(num_workers=2)
    assert process.pid is not None
    wait_until(lambda: gate.num_waiting == 2, process)
    os.kill(children_of(process.pid)[-1], signal.SIGKILL)  # the first is the tracker of shared resources
    gate.open()
    process.join(timeout=120)
    assert process.exitcode == 1
    assert "ValueError: a process that wrote shards was killed" in log_of(process, folder).splitlines()[-1]
    assert len(finished(folder)) >= 1


def test_processes_start_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    assert [_num_workers(None, rows) for rows in (0, 500, 2_000, 1_000_000)] == [1, 1, 2, 4]
    assert [_num_workers(wanted, 10**6) for wanted in (0, 1, 9)] == [0, 1, 9]


def test_columns_of_a_training_set(source: ManifestSource, tmp_path: Path) -> None:
    shards = prepare_shards(source, tmp_path / "out", SETTINGS).queries("train")
    facts = [shards.read_facts(number) for number in range(len(shards))]
    products = {key: facts[n]["product_id"] for n, key in enumerate(np.asarray(shards.column("product_keys")).tolist())}
    assert len(products) == 20 and set(products.values()) == {fact["product_id"] for fact in facts}
    assert set(np.asarray(shards.column("weights")).tolist()) == {1.0}
    assert len(set(np.asarray(shards.column("category_keys")).tolist())) == 1


def test_killed_just_before_it_was_renamed(
    source: ManifestSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, others = tmp_path / "out", ShardSettings(samples_per_shard=50, max_image_side=200)
    prepare_shards(source, folder, others)

    def killed(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(destination, "move_into_place", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_shards(source, folder, SETTINGS, overwrite=True)
    folder.rename(tmp_path / "aside")
    with pytest.raises(ValueError, match="unfinished preparation with samples_per_shard=4, this command has 50"):
        prepare_shards(source, folder, others)
    monkeypatch.setattr(preparation, "validate_source", killed)  # nothing is to be done again
    assert len(prepare_shards(source, folder, SETTINGS).catalog().sizes) == 10


def test_nothing_that_takes_long_follows_the_removal_of_the_markers(
    source: ManifestSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(store: Store) -> None:
        assert list((Path(store.address) / "image_hashes").glob("*.parquet"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(local_engine, "remove_markers", killed)
        prepare_shards(source, tmp_path / "out", SETTINGS, num_workers=1)
    monkeypatch.setattr(local_engine.ShardWriter, "write", None)  # every shard is finished
    assert len(prepare_shards(source, tmp_path / "out", SETTINGS, num_workers=1).catalog().sizes) == 10


def test_a_full_disk_does_not_make_finished_shards_those_of_another_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, described = Path.write_bytes, {"source": {"products": "x"}}

    def write_half(path: Path, data: bytes) -> int:
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def start() -> None:
        with partial.staging_dir(tmp_path / "a", described, overwrite=False) as staging:
            (staging / "catalogue").mkdir(exist_ok=True)
            (staging / MARKERS).mkdir(exist_ok=True)
            (staging / MARKERS / "0.npz").touch()
            raise InterruptedError

    with pytest.raises(InterruptedError):
        start()
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"No space left on device.*making\.json"):
        patch.setattr(Path, "write_bytes", write_half)
        start()
    with (
        pytest.raises(InterruptedError),
        partial.staging_dir(tmp_path / "a", described, overwrite=False) as found,
    ):
        assert (found / MARKERS / "0.npz").exists()
        raise InterruptedError
