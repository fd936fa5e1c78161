"""Slow connections and too many of them, on a real server with short deadlines."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.h11_impl import H11Protocol

from mim_lightning.search.service import server as server_module
from mim_lightning.search.service.app import make_app
from mim_lightning.search.service.connections import Connections, Proxies, client_key
from mim_lightning.search.service.request_limits import Limits
from mim_lightning.search.service.server import raise_file_limit, uvicorn_settings
from tests.search.service.color_shop import color_service

LIMITS = Limits(
    header_seconds=1, body_seconds=1, send_seconds=1, idle_seconds=1, connections=64, connections_per_client=32
)  # fmt: skip
PATIENCE = 30  # seconds, of which a test needs one or two
ASK = b"POST /search HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-www-form-urlencoded\r\n"


@contextmanager
def served(
    folder: Path, limits: Limits = LIMITS, proxies: str | None = None, protocol: Any = AutoHTTPProtocol
) -> Iterator[int]:
    service = color_service(folder)
    service.limits = limits
    app = make_app(service)
    settings = uvicorn_settings(limits, Proxies(proxies))
    settings["http"] = Connections(limits, Proxies(proxies)).protocol(protocol)
    with running(uvicorn.Server(uvicorn.Config(app, **settings))) as port:
        yield port


@contextmanager
def running(server: uvicorn.Server) -> Iterator[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture(scope="module", params=[AutoHTTPProtocol, H11Protocol], ids=["installed", "h11"])
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with served(tmp_path_factory.mktemp("shop"), protocol=request.param) as port:
        yield port


@contextmanager
def connected(port: int, *parts: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        for part in parts:
            connection.sendall(part)
        yield connection


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    received = b""
    with suppress(ConnectionError):
        while part := connection.recv(65536):
            received += part
    return received


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def ask(port: int, *headers: str) -> bytes:
    extra = "".join(f"{header}\r\n" for header in headers).encode()
    with connected(port, ASK + extra + b"connection: close\r\ncontent-length: 8\r\n\r\ntext=red") as connection:
        return rest(connection)


PARTIAL = [  # of requests, and what never comes of them
    (b"", "headers"),
    (b"GET /he", "headers"),
    (b"GET /health HTTP/1.1\r\nhost: a\r\n", "headers"),
    (ASK + b"content-length: 100\r\n\r\n", "body"),
    (ASK + b"content-length: 100\r\n\r\ntext=r", "body"),
    (ASK + b"transfer-encoding: chunked\r\n\r\n8\r\ntext", "body"),
]
DRIPPED = [b"GET /health HTTP/1.1\r\nx: ", ASK + b"content-length: 100000\r\n\r\n"]
HEALTH = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"


def test_an_incomplete_request_times_out(port: int) -> None:
    with ExitStack() as stack:  # all of them wait at the same time
        partial = [(stack.enter_context(connected(port, part)), what) for part, what in PARTIAL]
        dripped = [stack.enter_context(connected(port, part)) for part in DRIPPED]
        idle, halted = (stack.enter_context(connected(port)) for _ in range(2))
        for connection in (idle, halted):
            for _ in range(3):
                connection.sendall(HEALTH)
                assert status_of(connection.recv(65536)) == 200
        halted.sendall(HEALTH[:10])
        for connection in dripped:  # a byte at a time is no way around it
            connection.settimeout(0.1)
            assert status_of(drip(connection)) == 408
        for connection, what in partial:
            answer = rest(connection)
            assert status_of(answer) == 408
            error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
            assert error.startswith(f"the request's {what} did not arrive within")
        assert rest(idle) == b"" and status_of(rest(halted)) == 408


def drip(connection: socket.socket) -> bytes:
    for _ in range(PATIENCE * 10):
        with suppress(TimeoutError):
            connection.sendall(b"a")
            return connection.recv(65536)
    return b""


def test_headers_have_a_size_limit(port: int) -> None:
    with connected(port) as connection:
        with suppress(ConnectionError):
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n")
            for _ in range(2000):
                connection.sendall(b"x: " + b"a" * 1000 + b"\r\n")
        answer = rest(connection)
    assert not answer or status_of(answer) in (400, 431)


def test_a_slow_body_that_keeps_arriving_is_accepted(tmp_path: Path) -> None:
    body = b"text=red&user=" + b"a" * 90_000
    head = ASK + f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
    with served(tmp_path) as port, connected(port, head) as connection:
        for start in range(0, len(body), 10_000):
            connection.sendall(body[start : start + 10_000])
            threading.Event().wait(0.25)  # 2.5 s in all: more than a body that has no bytes may take
        assert status_of(rest(connection)) == 200


def test_a_response_that_is_not_read_times_out() -> None:
    lost = threading.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not lost.is_set():
            await send({"type": "http.response.body", "body": b"a" * 100_000, "more_body": True})

    settings = uvicorn_settings(LIMITS, Proxies(None))

    class Watched(settings["http"]):  # type: ignore[misc, name-defined]
        def connection_lost(self, exc: Exception | None) -> None:
            lost.set()
            super().connection_lost(exc)

    server = uvicorn.Server(uvicorn.Config(endless, **{**settings, "http": Watched}, lifespan="off"))
    with running(server) as port, connected(port, HEALTH):
        assert lost.wait(PATIENCE)


def test_connections_have_limits(tmp_path: Path) -> None:
    few = replace(LIMITS, connections=8, connections_per_client=4, header_seconds=PATIENCE)
    with served(tmp_path, few) as port, ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(connected(port, b"GET"))
        refused = stack.enter_context(connected(port))
        answer = rest(refused)
        assert status_of(answer) == 429 and b"the limit of 4 connections" in answer
        for number in range(2, 6):  # of all clients: loopback has many addresses
            other = stack.enter_context(socket.socket())
            other.settimeout(PATIENCE)
            other.bind((f"127.0.0.{number}", 0))
            other.connect(("127.0.0.1", port))
            other.sendall(b"GET")
        late = stack.enter_context(socket.socket())
        late.settimeout(PATIENCE)
        late.bind(("127.0.0.9", 0))
        late.connect(("127.0.0.1", port))
        answer = rest(late)
        assert status_of(answer) == 503 and b"limit of 8 connections" in answer
        stack.close()
        assert any(is_taken(port) for _ in range(PATIENCE * 10)), "connections that were closed are still counted"


def is_taken(port: int) -> bool:
    threading.Event().wait(0.1)
    with suppress(ConnectionError, IndexError):
        return status_of(ask(port)) == 200
    return False


def test_forwarded_addresses_are_trusted_from_named_proxies_only(tmp_path: Path) -> None:
    limits = replace(LIMITS, requests_per_minute=3, connections_per_client=2)
    (tmp_path / "a").mkdir()
    with served(tmp_path / "a", limits) as port:
        statuses = [status_of(ask(port, f"x-forwarded-for: 10.0.0.{number}")) for number in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    (tmp_path / "b").mkdir()
    with served(tmp_path / "b", limits, "127.0.0.0/8") as port:
        statuses = [status_of(ask(port, f"x-forwarded-for: 1.2.3.4, 10.0.0.{number % 2}")) for number in range(8)]
        assert statuses == [200] * 6 + [429] * 2
        with ExitStack() as stack:  # nor are the proxy's connections those of one client
            for _ in range(3):
                stack.enter_context(connected(port, b"GET"))
            assert status_of(ask(port, "x-forwarded-for: 10.0.0.9")) == 200


def test_proxies_are_addresses_and_networks() -> None:
    assert "127.0.0.1" not in Proxies(None) and "127.0.0.1" not in Proxies("")
    assert "10.1.2.3" in Proxies("127.0.0.1, 10.0.0.0/8") and "11.0.0.1" not in Proxies(["10.0.0.0/8"])
    assert "::1" in Proxies("::1") and "anything" in Proxies("*") and "unknown" not in Proxies("10.0.0.0/8")
    with pytest.raises(ValueError, match=r"forwarded_allow_ips=localhost: .* give addresses or networks"):
        Proxies("localhost")


def test_an_ipv6_client_is_counted_by_its_network() -> None:
    assert client_key("2001:db8::1") == client_key("2001:db8::ffff:2") == "2001:db8::/64"
    assert client_key("::ffff:10.0.0.1") == "10.0.0.1" == client_key("10.0.0.1")
    assert client_key("2001:db8:0:1::1") != client_key("2001:db8::1") and client_key("fe80::1%eth0") == "fe80::/64"
    assert client_key("a" * 500) == "a" * 100


@pytest.mark.parametrize(("hard", "possible"), [(128, 32), (300, 75), (500, 244), (4096, 512)])
def test_connections_are_as_many_as_open_files_allow(
    hard: int, possible: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raised = []
    monkeypatch.setattr(server_module.resource, "getrlimit", lambda kind: (min(hard, 1024), hard))
    monkeypatch.setattr(server_module.resource, "setrlimit", lambda kind, limits: raised.append(limits))
    assert raise_file_limit(512) == possible
    assert ("raise ulimit -n" in capsys.readouterr().err) == (possible < 512)
    assert raised == []
