"""How long a connection may take, and how many there may be: what uvicorn has no options for.

A client that sends its request a byte at a time, reads no answer, or opens thousands of connections costs one of a
few places for a few seconds. Behind a reverse proxy the proxy's own limits come first; its connections are not counted
as those of one client.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from mim_lightning.search.service.client_address import UNKNOWN, counted_as
from mim_lightning.search.service.limits import Limits

LOOK_EVERY = 0.5  # seconds
BYTES_PER_SECOND = 16_000  # that prolong the time of a body as they come
MAX_HEADER = 65_536  # bytes of a request line and headers

Mixin: Any = object  # of a class whose other base is one of uvicorn's protocols


class Connections:
    """All connections of one server, with their deadlines.

    Args:
        is_proxy: is this address one of a proxy that speaks for many clients?
    """

    def __init__(self, limits: Limits, is_proxy: Callable[[str], bool]) -> None:
        self.limits, self.is_proxy = limits, is_proxy
        self._open: set[_Connection] = set()
        self._by_client: Counter[str] = Counter()
        self._is_watching = False

    def protocol(self, base: type[asyncio.Protocol] = AutoHTTPProtocol) -> type[asyncio.Protocol]:
        """Return a protocol for uvicorn's option `http`; `base` is one of uvicorn's own."""
        return type("LimitedConnection", (_Connection, base), {"all": self})

    def refusal(self, client: str | None) -> tuple[int, str] | None:
        """Return why no more connection of this client is taken, as a status and a line."""
        limits = self.limits
        if len(self._open) >= limits.connections:
            return 503, f"the service has {limits.connections} connections, which is all it takes; try again soon"
        if client is not None and self._by_client[client] >= limits.connections_per_client:
            return 429, f"you have {limits.connections_per_client} connections, which is all you may have; close some"
        return None

    def add(self, connection: _Connection) -> None:
        self._open.add(connection)
        if connection.counted is not None:
            self._by_client[connection.counted] += 1
        if not self._is_watching:
            self._is_watching = True
            connection.loop.call_later(LOOK_EVERY, self._watch, connection.loop)

    def remove(self, connection: _Connection) -> None:
        if connection not in self._open:
            return
        self._open.remove(connection)
        if connection.counted is not None:
            self._by_client[connection.counted] -= 1
            if not self._by_client[connection.counted]:
                del self._by_client[connection.counted]

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self._open):
            connection.end_if_late(now)
        self._is_watching = bool(self._open)
        if self._is_watching:
            loop.call_later(LOOK_EVERY, self._watch, loop)


class _Connection(Mixin):
    """One of uvicorn's own protocols, whose requests must come and whose answers must be taken within some time."""

    all: Connections
    counted: str | None = None  # the client it is counted for; None: a proxy
    is_refused = False
    running: Any = None  # the request at work, where uvicorn has several of a connection

    def connection_made(self, transport: asyncio.Transport) -> None:
        host = _host(transport)
        self.counted = None if self.all.is_proxy(host) else counted_as(host)
        refusal = self.all.refusal(self.counted)
        if refusal is not None:
            self.is_refused = True
            transport.write(_answer(*refusal))
            transport.close()
            return
        # of the request that is coming: when it began, and its bytes; None: none is
        self.begun: float | None = self.loop.time()
        self.num_bytes = 0
        self.stalled: float | None = None  # since when the client takes nothing of an answer
        self.closing: float | None = None
        super().connection_made(transport)
        self.all.add(self)

    def data_received(self, data: bytes) -> None:
        if self.is_refused:
            return
        before, was_whole = self.cycle, self.cycle is not None and not self.cycle.more_body
        if self.begun is None:
            self.begun, self.num_bytes = self.loop.time(), 0
        super().data_received(data)
        self.num_bytes += len(data)
        if self.cycle is not before:  # the headers are whole, now comes the body
            self.begun, self.num_bytes, was_whole = self.loop.time(), 0, False
        if self._is_header() and self.cycle is not None and not was_whole:
            self.begun = None  # and so is the request
        elif self._is_header() and self.num_bytes > MAX_HEADER:
            self._end(431, f"the headers have more than {MAX_HEADER:,} bytes")

    def eof_received(self) -> None:
        if not self.is_refused:
            super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.all.remove(self)
        if not self.is_refused:
            super().connection_lost(exc)
            if self.running is not None:  # of several requests uvicorn tells the last only
                self.running.disconnected = True
                self.running.message_event.set()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:  # of httptools' protocol
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        if not self.is_refused:
            self.stalled = self.loop.time()
            super().pause_writing()

    def resume_writing(self) -> None:
        if not self.is_refused:
            self.stalled = None
            super().resume_writing()

    def end_if_late(self, now: float) -> None:
        """End the connection if what is awaited of the client has not come in time."""
        limits = self.all.limits
        if self.transport.is_closing():  # with something left that the client does not take
            self.closing = now if self.closing is None else self.closing
            if now - self.closing > limits.send_seconds:
                self.transport.abort()
        elif self.stalled is not None:
            if now - self.stalled > limits.send_seconds:
                self.transport.abort()
        elif self.begun is not None:
            what, allowed = "headers", float(limits.header_seconds)
            if not self._is_header():
                what, allowed = "body", limits.body_seconds + self.num_bytes / BYTES_PER_SECOND
            if now - self.begun > allowed:
                self._end(408, f"the request's {what} did not come within {allowed:.0f} s")

    def _is_header(self) -> bool:
        return self.cycle is None or not self.cycle.more_body

    def _end(self, status: int, message: str) -> None:
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            if self.cycle is not None:
                self.cycle.disconnected = True  # whatever the application answers comes too late
                self.cycle.message_event.set()
            self.transport.write(_answer(status, message))
        self.transport.close()


def _host(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) and peer else UNKNOWN


def _answer(status: int, message: str) -> bytes:
    body = json.dumps({"error": message}).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
