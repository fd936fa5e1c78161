"""A shop's image server on loopback, with the failures of real ones; it counts requests."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.data.conftest import jpeg

MEGABYTE = 1_000_000


class ImageServer(ThreadingHTTPServer):
    """`/ok/7` is image 7; see the handler for other paths. `pause`: seconds before each answer."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.agents: set[str | None] = set()
        self.pause = 0.0
        self.is_closing = threading.Event()

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect early: the tests do."""


def served(number: int) -> bytes:
    return jpeg(number, 8, 8)


@contextmanager
def image_server() -> Iterator[ImageServer]:
    server = ImageServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.is_closing.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ImageServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        self.server.agents.add(self.headers["User-Agent"])
        time.sleep(self.server.pause)
        self.close_connection = True
        kind, _, number = self.path.split("?")[0].strip("/").partition("/")
        getattr(self, f"_{kind}")(int(number or 0))

    def _ok(self, number: int) -> None:
        self._answer(200, served(number))

    def _twice(self, number: int) -> None:
        """Fail twice, then answer."""
        self._answer(200, served(number)) if self.server.asked[self.path] > 2 else self._answer(503)

    def _busy(self, number: int) -> None:
        """Answer 429 with Retry-After: 0."""
        first = self.server.asked[self.path] == 1
        self._answer(429, headers={"Retry-After": "0"}) if first else self._answer(200, served(number))

    def _cut(self, number: int) -> None:
        """Send less than Content-Length, the first time."""
        data = served(number)
        if self.server.asked[self.path] > 1:
            self._answer(200, data)
        else:
            self._answer(200, data[:-10], {"Content-Length": str(len(data))})

    def _broken(self, number: int) -> None:
        self._answer(500)

    def _missing(self, number: int) -> None:
        self._answer(404)

    def _page(self, number: int) -> None:
        self._answer(200, b"<html>sold out</html>", {"Content-Type": "text/html; charset=utf-8"})

    def _empty(self, number: int) -> None:
        self._answer(200, b"")

    def _elsewhere(self, number: int) -> None:
        """Redirect to another address of the same server."""
        port = self.server.server_port
        self._answer(302, headers={"Location": f"http://127.0.0.2:{port}/ok/{number}"})

    def _large(self, number: int) -> None:
        """Announce a gigabyte."""
        self._answer(200, b"x", {"Content-Length": "1000000000"})

    def _endless(self, number: int) -> None:
        """Send without end and without Content-Length."""
        self.send_response(200)
        self.end_headers()
        while not self.server.is_closing.is_set():
            self.wfile.write(b"x" * MEGABYTE)

    def _stall(self, number: int) -> None:
        """Send a part of the response, then stall."""
        self.send_response(200)
        self.end_headers()
        self.server.is_closing.wait(20)

    def _drip(self, number: int) -> None:
        """Send a byte now and then."""
        self.send_response(200)
        self.end_headers()
        while not self.server.is_closing.wait(0.05):
            self.wfile.write(b"x")

    def _moved(self, number: int) -> None:
        self._answer(302, headers={"Location": f"/ok/{number}"})

    def _answer(self, code: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        fields = {"Content-Type": "image/jpeg", "Content-Length": str(len(data))} | (headers or {})
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass
