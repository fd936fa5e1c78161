"""A web server on loopback that fails on request, and processes that read from it."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mim_lightning.io.locks import lock

FOREVER = 10**6


class FaultyStore:
    """A web server of a folder's files, which counts what is asked for.

    `fail(name, fault, times)` has the next so many requests of a file answered by "error" (500), "refused" (403),
    "silent" (nothing at all), "stall" (half of it, then nothing), "cut" (half of it, then the end), "short" (a
    shorter file), "flipped" (another byte in the middle), "shifted" (another range of the same length), "reset" (half
    of it, then the connection is reset), or "slow" (all of it, in pieces).
    """

    def __init__(self, folder: Path, has_ranges: bool = False) -> None:
        self.folder, self.has_ranges = folder, has_ranges
        self.asked: Counter[str] = Counter()
        self.num_bytes = 0  # sent
        self._faults: dict[str, tuple[str, int]] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def fail(self, name: str, fault: str, times: int = FOREVER) -> None:
        self._faults[name] = fault, times

    def close(self) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()

    def _fault(self, name: str) -> str:
        with self._lock:
            self.asked[name] += 1
            fault, times = self._faults.get(name, ("", 0))
            self._faults[name] = fault, times - 1
            return fault if times > 0 else ""

    def _handler(store) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler's
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                fault, path = store._fault(name), store.folder / name
                if fault in ("error", "refused") or not path.is_file():
                    self.send_error({"error": 500, "refused": 403}.get(fault, 404))
                elif fault == "silent":
                    store._end.wait()
                else:
                    self._send(path.read_bytes(), fault)

            def _send(self, data: bytes, fault: str) -> None:
                status, wanted = 200, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if wanted and store.has_ranges:
                    status, data = 206, data[int(wanted[1]) : int(wanted[2]) + 1]
                store.num_bytes += len(data)
                half = len(data) // 2
                if fault == "short":
                    data = data[:half]
                if fault == "shifted":
                    data = data[half:] + data[:half]
                if fault == "flipped":
                    data = data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                pieces = 5 if fault == "slow" else 1
                step = -(-len(data) // pieces)
                num_sent = half if fault in ("stall", "cut", "reset") else len(data)
                for start in range(0, num_sent, step):
                    self.wfile.write(data[start : min(start + step, num_sent)])
                    if fault == "slow":
                        store._end.wait(0.25)
                if fault == "stall":
                    store._end.wait()
                if fault == "reset":
                    self.wfile.flush()
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@contextmanager
def serving(folder: Path, has_ranges: bool = False) -> Iterator[FaultyStore]:
    store = FaultyStore(folder, has_ranges)
    try:
        yield store
    finally:
        store.close()


def in_processes(function: Callable[[int], None], count: int, timeout: float = 240.0) -> list[int | None]:
    """Call a function with 0, 1 ... in forked processes at once, and return their exit codes."""
    processes = [get_context("fork").Process(target=function, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout
    while any(process.exitcode is None for process in processes):  # join would wait for what they forked, too
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
            raise AssertionError(f"no end within {timeout} s")
        time.sleep(0.005)
    return [process.exitcode for process in processes]


@contextmanager
def watch_disk_usage(cache: Path) -> Iterator[list[int]]:
    """Collect the bytes that a cache takes, all the time, while processes use it."""
    sizes, is_over = [0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.002):
            sizes.append(_disk_usage(cache))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield sizes
    finally:
        is_over.set()
        watcher.join()


def _disk_usage(cache: Path) -> int:
    """Return the bytes of all files that are whole or being fetched; reservations are empty."""
    sizes = {}
    with lock(cache / ".lock", 10, removes=True):  # no process evicts files between two checks
        for path in cache.rglob("*"):
            with suppress(FileNotFoundError):  # renamed meanwhile
                if path.is_file() and not path.name.endswith(".partial"):
                    sizes[path.stat().st_ino] = path.stat().st_size
    return sum(sizes.values())
