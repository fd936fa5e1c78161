"""Connections of clients: which address each is counted by, how many there may be, and how long each may take.

uvicorn has no options for these. A client that sends a request a byte at a time, never reads a response or opens
thousands of connections uses up a few of them for a few seconds. Connections of a reverse proxy are not counted as
those of one client, and the proxy's own limits apply first.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from mim_lightning.search.service.request_limits import Limits

UNKNOWN = "unknown"
CHECK_SECONDS = 0.5  # between two looks for expired deadlines
BYTES_PER_SECOND = 16_000  # a body may take a second more for so many
MAX_HEADER = 65_536  # bytes of a request line and headers

Mixin: Any = object  # of a class whose other base is one of uvicorn's protocols


def client_of(scope: Scope) -> str:
    """Return the client of a request, which a trusted proxy names (see `forwarded_allow_ips`)."""
    client = scope.get("client")
    return client_key(client[0]) if client else UNKNOWN


@lru_cache(maxsize=10_000)
def client_key(host: str) -> str:
    """Return what an address is counted by: of IPv6 its /64 network, all of which one client owns."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host[:100]
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or IPv6Network((address, 64), strict=False))


class Proxies:
    """The addresses whose X-Forwarded-For is trusted: none unless they are named.

    Args:
        named: addresses and networks, such as "127.0.0.1, 10.0.0.0/8"; "*" for every one; None or "" for none.

    Raises:
        ValueError: something else is named.
    """

    def __init__(self, named: str | Sequence[str] | None) -> None:
        words = named.split(",") if isinstance(named, str) else list(named or ())
        self.names = [word.strip() for word in words if word.strip()]
        self._all = "*" in self.names
        try:
            self._networks = [ip_network(name) for name in self.names if name != "*"]
        except ValueError as error:
            raise ValueError(
                f"forwarded_allow_ips={','.join(self.names)}: {error}; give addresses or networks, such as 127.0.0.1"
            ) from error

    def __contains__(self, host: str) -> bool:
        if self._all or not self._networks:
            return self._all
        try:
            address = ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


class Connections:
    """All connections of one server, with their deadlines."""

    def __init__(self, limits: Limits, proxies: Proxies) -> None:
        self.limits, self.proxies = limits, proxies
        self._open: set[_Connection] = set()
        self._by_client: Counter[str] = Counter()
        self._is_watching = False

    def protocol(self, base: type[asyncio.Protocol] = AutoHTTPProtocol) -> type[asyncio.Protocol]:
        """Return a protocol for uvicorn's option `http`; `base` is one of uvicorn's own."""
        return type("LimitedConnection", (_Connection, base), {"all": self})

    def refusal(self, client: str | None) -> tuple[int, str] | None:
        """Return the status and message for a client that may open no further connection, None if it may."""
        limits = self.limits
        if len(self._open) >= limits.connections:
            return 503, f"the service has reached its limit of {limits.connections} connections; try again soon"
        if client is not None and self._by_client[client] >= limits.connections_per_client:
            return 429, f"you have reached the limit of {limits.connections_per_client} connections; close some"
        return None

    def add(self, connection: _Connection) -> None:
        self._open.add(connection)
        if connection.counted is not None:
            self._by_client[connection.counted] += 1
        if not self._is_watching:
            self._is_watching = True
            connection.loop.call_later(CHECK_SECONDS, self._watch, connection.loop)

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
            loop.call_later(CHECK_SECONDS, self._watch, loop)


class _Connection(Mixin):
    """One of uvicorn's protocols, with deadlines for requests to arrive and for responses to be read."""

    all: Connections
    counted: str | None = None  # the client that it counts for; None: a proxy (uvicorn has its own `client`)
    is_refused = False
    running: Any = None  # uvicorn's current request of a connection

    def connection_made(self, transport: asyncio.Transport) -> None:
        peer = transport.get_extra_info("peername")
        host = str(peer[0]) if isinstance(peer, tuple) and peer else UNKNOWN
        self.counted = None if host in self.all.proxies else client_key(host)
        refusal = self.all.refusal(self.counted)
        if refusal is not None:
            self.is_refused = True
            transport.write(_raw_response(*refusal))
            transport.close()
            return
        # of the request that is arriving: when it started (None: no request) and its bytes
        self.started: float | None = self.loop.time()
        self.num_bytes = 0
        self.stalled: float | None = None  # since when the client has stopped reading a response
        self.closing: float | None = None
        super().connection_made(transport)
        self.all.add(self)

    def data_received(self, data: bytes) -> None:
        if self.is_refused:
            return
        before, was_complete = self.cycle, self.cycle is not None and not self.cycle.more_body
        if self.started is None:
            self.started, self.num_bytes = self.loop.time(), 0
        super().data_received(data)
        self.num_bytes += len(data)
        if self.cycle is not before:  # the headers are complete, the body follows
            self.started, self.num_bytes, was_complete = self.loop.time(), 0, False
        if self._is_header() and self.cycle is not None and not was_complete:
            self.started = None  # the request is complete
        elif self._is_header() and self.num_bytes > MAX_HEADER:
            self._end(431, f"the headers have more than {MAX_HEADER:,} bytes")

    def eof_received(self) -> None:
        if not self.is_refused:
            super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.all.remove(self)
        if not self.is_refused:
            super().connection_lost(exc)
            if self.running is not None:  # of several requests uvicorn notifies the last only
                self.running.disconnected = True
                self.running.message_event.set()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:  # of the httptools protocol
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
        """End the connection if the client missed a deadline."""
        limits = self.all.limits
        if self.transport.is_closing():  # with unsent bytes that the client does not read
            self.closing = now if self.closing is None else self.closing
            if now - self.closing > limits.send_seconds:
                self.transport.abort()
        elif self.stalled is not None:
            if now - self.stalled > limits.send_seconds:
                self.transport.abort()
        elif self.started is not None:
            what, allowed = "headers", float(limits.header_seconds)
            if not self._is_header():
                what, allowed = "body", limits.body_seconds + self.num_bytes / BYTES_PER_SECOND
            if now - self.started > allowed:
                self._end(408, f"the request's {what} did not arrive within {allowed:.0f} s")

    def _is_header(self) -> bool:
        return self.cycle is None or not self.cycle.more_body

    def _end(self, status: int, message: str) -> None:
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            if self.cycle is not None:
                self.cycle.disconnected = True  # the application's response would be too late
                self.cycle.message_event.set()
            self.transport.write(_raw_response(status, message))
        self.transport.close()


def _raw_response(status: int, message: str) -> bytes:
    body = json.dumps({"error": message}).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
