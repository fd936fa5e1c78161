"""Measure the search service under concurrent clients, and the same search under LitServe.

Reads an index folder and photos. The servers run alternately in their own processes on loopback, with the same model,
index and number of torch threads. Prints for each: searches a second, latency at the median, 95 % and 99 %, errors,
memory after 15 seconds and at the end; and, for a single client, the overhead of the service over encoder and index.
`--help` shows how to shorten it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from machine import tree_bytes

WORDS = ("red", "blue", "striped", "in green", "without text", "organic")
Post = Callable[[bytes, dict[str, str]], dict[str, Any]]


@dataclass
class Load:
    """Measurements of one server by its clients."""

    seconds: list[float] = field(default_factory=list)
    overheads_ms: list[float] = field(default_factory=list)  # of the server: total less encoder and index
    errors: list[str] = field(default_factory=list)
    wall: float = 0.0
    mib: tuple[float, float] = (0.0, 0.0)

    def row(self, name: str) -> str:
        times_ms = 1e3 * np.array(self.seconds)
        middle, high, highest = np.percentile(times_ms, (50, 95, 99))
        cells = (
            f"{len(times_ms) / self.wall:.1f}", f"{middle:.0f}", f"{high:.0f}", f"{highest:.0f}", str(len(self.errors)),
            f"{self.mib[0]:.0f}", f"{self.mib[1]:.0f}",
        )  # fmt: skip
        return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    options = _options()
    photos = sorted(path.read_bytes() for path in options.photos.rglob("*.jpg"))[:200]
    print(f"{options.clients} clients for {options.seconds} s, each with a photo, half of them with words; "
          f"{os.cpu_count()} cores, {options.threads} torch threads\n")  # fmt: skip
    print("| server | searches/s | p50 ms | p95 ms | p99 ms | errors | MiB before | MiB after |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    alone: list[Load] = []
    for name in options.rounds * options.servers:
        with _running(name, options) as (url, process):
            ask = partial(_ask, url, POSTS[name], photos, process=process)
            ask(options.clients, min(options.seconds, 15.0))  # memory and caches fill
            print(ask(options.clients, options.seconds).row(name), flush=True)
            if name == "uvicorn":
                alone.append(ask(1, min(options.seconds, 15.0)))
    if alone:
        over = np.concatenate([load.overheads_ms for load in alone])
        seen = 1e3 * np.concatenate([load.seconds for load in alone])
        print(f"\none client alone: {np.median(seen):.1f} ms a search at the client; besides encoder and index "
              f"{np.median(over):.1f} ms (median), {np.percentile(over, 99):.1f} ms (p99)")  # fmt: skip


def _ask(
    url: str, post: Post, photos: Sequence[bytes], num_clients: int, seconds: float, process: subprocess.Popen[bytes]
) -> Load:
    load, stop = Load(), time.perf_counter() + seconds
    before, started = tree_bytes(pid=process.pid), time.perf_counter()

    def client(number: int) -> None:
        with httpx.Client(base_url=url, timeout=120) as session:
            turn = number
            while time.perf_counter() < stop:
                words = {"text": WORDS[turn % len(WORDS)]} if turn % 2 else {}
                body = post(photos[turn % len(photos)], words)
                started = time.perf_counter()
                try:
                    answer = session.post("/search", **body)
                    took = time.perf_counter() - started
                    if answer.status_code != 200 or not answer.json()["hits"]:
                        load.errors.append(answer.text[:200])
                        continue
                    timing = answer.json().get("timing_ms", {"encode": 0, "index": 0})
                    load.seconds.append(took)
                    load.overheads_ms.append(1e3 * took - timing["encode"] - timing["index"])
                except httpx.HTTPError as error:
                    load.errors.append(repr(error))
                turn += num_clients

    threads = [threading.Thread(target=client, args=(number,)) for number in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.wall, load.mib = (
        time.perf_counter() - started,
        tuple(size / 2**20 for size in (before, tree_bytes(pid=process.pid))),
    )
    for error in load.errors[:3]:
        print(f"error: {error}", file=sys.stderr)
    return load


def _as_form(photo: bytes, words: dict[str, str]) -> dict[str, Any]:
    return {"files": {"image": photo}, "data": words}


def _as_json(photo: bytes, words: dict[str, str]) -> dict[str, Any]:
    return {"json": {"image": base64.b64encode(photo).decode(), **words}}


POSTS: dict[str, Post] = {"uvicorn": _as_form, "litserve": _as_json}


@contextlib.contextmanager
def _running(name: str, options: argparse.Namespace) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ours = [sys.executable, "-m", "mim_lightning.serve", f"index={options.index}", f"port={port}", "ui=false",
            "limits.requests_per_minute=0", *options.overrides]  # fmt: skip
    theirs = [sys.executable, str(Path(__file__).with_name("serving_litserve.py")), options.index, str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    command = ours if name == "uvicorn" else theirs
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process)
        yield url, process
    finally:
        process.terminate()
        process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # LitServe's workers outlive it


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health").status_code == 200:
                return
        if process.poll() is not None:
            raise SystemExit(f"the server ended with code {process.returncode}")
        time.sleep(0.2)
    raise SystemExit(f"{url}: no answer within two minutes")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--index", required=True, help="folder that build_index made")
    parser.add_argument("--photos", type=Path, help="folder of .jpg photos to search with")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of the server")
    parser.add_argument("--rounds", type=int, default=2, help="how often each server has its turn")
    parser.add_argument("--overrides", nargs="*", default=[], help="of our service's settings, as runtime=onnx")
    parser.add_argument("--servers", nargs="+", choices=["uvicorn", "litserve"], default=["uvicorn", "litserve"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
