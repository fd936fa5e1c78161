"""A store behind a slow link: a folder over HTTP, with a wait before each answer and a limit of each connection.

Serves ranges and the part of S3's dialect that reading needs, so `http://` and `s3://` read from the same store. Files
go from the page cache by `sendfile`: that takes little CPU time of the machine that the store shares with its readers.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

PIECE = 1 << 18  # bytes between two looks at the clock
NO_KEYS = (
    '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><KeyCount>0</KeyCount>'
    "<IsTruncated>false</IsTruncated></ListBucketResult>"
)


class Link(NamedTuple):
    latency: float  # seconds from a request to its answer
    bandwidth: float  # bytes/s of a connection


class Traffic(NamedTuple):
    """What a store has sent so far."""

    num_requests: int
    num_bytes: int
    cpu: float  # seconds


class SlowStore:
    """The running store, in a process of its own."""

    def __init__(self, folder: Path, link: Link) -> None:
        context = get_context("fork")
        self._counts = context.Array("q", 3)  # requests, bytes, port
        self._process = context.Process(target=_serve, args=(folder, link, self._counts), daemon=True)
        self._process.start()
        while not self._counts[2]:
            time.sleep(0.01)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._counts[2]}"

    @property
    def traffic(self) -> Traffic:
        stat = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return Traffic(self._counts[0], self._counts[1], sum(map(int, stat[11:13])) / os.sysconf("SC_CLK_TCK"))

    def close(self) -> None:
        self._process.terminate()
        self._process.join()


@contextmanager
def serve_slowly(folder: Path, link: Link) -> Iterator[SlowStore]:
    store = SlowStore(folder, link)
    try:
        yield store
    finally:
        store.close()


def _serve(folder: Path, link: Link, counts: Any) -> None:
    class Handler(_Handler):
        pass

    Handler.folder, Handler.link, Handler.counts = folder, link, counts
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    counts[2] = server.server_port
    server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True
    folder: Path
    link: Link
    counts: Any

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        with self.counts.get_lock():
            self.counts[0] += 1
        time.sleep(self.link.latency)
        path = self.folder / self.path.split("?")[0].lstrip("/")
        if "list-type=" in self.path or not path.is_file():
            content = NO_KEYS.encode() if "list-type=" in self.path else b""
            self.send_response(200 if content else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return
        with path.open("rb") as file, suppress(ConnectionError):
            self._send(file.fileno(), os.fstat(file.fileno()).st_size)

    def _send(self, file: int, size: int) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = (int(wanted[1]), min(size, int(wanted[2] or size) + 1)) if wanted else (0, size)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        for name, value in (("Content-Length", stop - start), ("ETag", f'"{size}"'), ("Accept-Ranges", "bytes")):
            self.send_header(name, str(value))
        self.send_header("Last-Modified", formatdate(0, usegmt=True))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.flush()
        started, first = time.monotonic(), start
        while start < stop:
            sent = os.sendfile(self.connection.fileno(), file, start, min(PIECE, stop - start))
            start += sent
            with self.counts.get_lock():
                self.counts[1] += sent
            pause = started + (start - first) / self.link.bandwidth - time.monotonic()
            if pause > 0:
                time.sleep(pause)

    def log_message(self, *_: Any) -> None:
        pass
