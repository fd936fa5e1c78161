"""The service with slow clients, with a full disk under its event log, and with few open files: it goes on serving."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.campaign.outcomes import record_outcome
from tests.campaign.processes import EntryPoint, wait_until
from tests.campaign.search import Shop
from tests.campaign.starved import fill, make_room, small_disk
from tests.campaign.test_killed_service import SALT, Clients, assert_log_is_whole, serve

pytestmark = pytest.mark.campaign
FORM = b"POST /search HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-www-form-urlencoded\r\n"


def test_slow_clients(search_shop: Shop, tmp_path: Path) -> None:
    with record_outcome("starved", "serve, under load", "50 clients that send or read nothing more") as found:
        started, clients = serve(search_shop.index, tmp_path)
        parts = (b"", FORM, FORM + b"content-length: 9\r\n\r\nlike=", FORM + b"content-length: 8\r\n\r\nlike=003")
        with connected(clients, 50) as connections:
            for number, connection in enumerate(connections):
                connection.sendall(parts[number % len(parts)])
            more = len(clients.clicks) + 30
            wait_until(lambda: len(clients.clicks) >= more)
        end(started, clients)
        assert not clients.failures and not clients.cut, f"answers {clients.failures}, cut: {clients.cut}"
        assert_log_is_whole(tmp_path / "events.db", [clients])
        found.outcome = "the others are served, log whole"


def test_a_full_disk_under_the_event_log(search_shop: Shop, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as is_mounted:
        if not is_mounted:
            pytest.skip("this user may not mount a disk")
        with record_outcome("starved", "serve, under load", "disk full under the event log, and room again") as found:
            started, clients = serve(search_shop.index, tmp_path, tmp_path / "disk", are_patient=True)
            wait_until(lambda: len(clients.clicks) >= 10)
            fill(tmp_path / "disk")
            wait_until(lambda: clients.num_unrecorded >= 30)
            assert make_room(tmp_path / "disk")
            more = len(clients.clicks) + 10
            wait_until(lambda: len(clients.clicks) >= more)  # it tries again every five seconds
            end(started, clients)
            assert not clients.failures and not clients.cut, f"answers {clients.failures}, cut: {clients.cut}"
            assert_log_is_whole(tmp_path / "disk" / "events.db", [clients])
            found.outcome = "searches go on, one line; recorded again with room, log whole"


def test_few_open_files(search_shop: Shop, tmp_path: Path) -> None:
    with record_outcome("starved", "serve, under load", "128 open files, 400 connections") as found:
        started, clients = serve(search_shop.index, tmp_path, num_files=128)
        assert "raise ulimit -n" in started.stderr
        clients.join()
        with connected(clients, 400):
            time.sleep(3)
        again = Clients(clients.address)
        wait_until(lambda: len(again.clicks) >= 20)
        end(started, again)
        assert not again.failures and not again.cut, f"answers {again.failures}, cut: {again.cut}"
        assert_log_is_whole(tmp_path / "events.db", [clients, again])
        found.outcome = "refused beyond the limit, one line; served when they are gone"


def test_an_event_log_that_cannot_be_written(search_shop: Shop, tmp_path: Path) -> None:
    with record_outcome("starved", "serve", "read-only folder of the event log") as found:
        words = [f"index={search_shop.index}", "port=0", "ui=false", "device=cpu", "experiment_name=e"]
        started = EntryPoint("serve", [*words, "event_log=/proc/events.db"], tmp_path, environment=SALT)
        code = started.wait_until_gone()
        lines = started.stderr.splitlines()
        assert code == 2 and "Traceback" not in started.stderr, started.stderr[-500:]
        assert lines[-1].startswith("error: event_log=/proc/events.db"), lines[-1]
        found.outcome = "one line"


@contextmanager
def connected(clients: Clients, count: int) -> Iterator[list[socket.socket]]:
    host, port = clients.address.removeprefix("http://").split(":")
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(count)]


def end(started: EntryPoint, clients: Clients) -> None:
    clients.join()
    started.kill()
    assert "Traceback" not in started.stderr, started.stderr[-500:]
