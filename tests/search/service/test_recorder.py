"""While the event log fails, searches have no impression id, clicks get 503, and a log line and a metric report it."""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from fastapi.testclient import TestClient
from sqlalchemy import event

from mim_lightning.online.assignment import Arm, Experiment
from mim_lightning.online.event_log import EventLog
from mim_lightning.search.service import recorder as module
from mim_lightning.search.service.app import make_app
from tests.search.service.color_shop import color_service

LOGGER = "mim_lightning.search.service.recorder"


class Service:
    """A service with an experiment, its event log and a clock that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "events.db"
        self.log = EventLog(str(self.path), wait_seconds=0.05)
        service = color_service(folder, ("default",), Experiment("e", {"default": Arm("default")}, "s" * 32, self.log))
        assert service.recorder is not None
        self.now = 0.0
        service.recorder._clock = lambda: self.now
        self.client = TestClient(make_app(service))

    def search(self) -> dict[str, Any]:
        answer = self.client.post("/search", data={"text": "red", "user": "ann"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["hits"][0]["product_id"] == "red-1"
        return dict(answer.json())

    def click(self, impression_id: str) -> Any:
        return self.client.post("/click", json={"impression_id": impression_id, "product_id": "red-1"})


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    service.log.close()


def lock(service: Service) -> Callable[[], None]:
    other = sqlite3.connect(service.path, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    return other.rollback


def fill_the_disk(service: Service) -> Callable[[], None]:
    def limit(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={connection.execute('PRAGMA page_count').fetchone()[0]}")

    service.log._engine.dispose()
    event.listen(service.log._engine, "connect", limit)
    service.search()  # what fits into the pages that there are
    while service.search()["impression_id"] is not None:
        pass
    service.now += 100

    def make_room() -> None:
        event.remove(service.log._engine, "connect", limit)
        service.log._engine.dispose()

    return make_room


def write_protect(service: Service) -> Callable[[], None]:
    def protect(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA query_only=ON")

    service.log._engine.dispose()
    event.listen(service.log._engine, "connect", protect)

    def unprotect() -> None:
        event.remove(service.log._engine, "connect", protect)
        service.log._engine.dispose()

    return unprotect


def remove(service: Service) -> Callable[[], None]:
    away = service.path.with_name("away.db")
    service.path.rename(away)
    return lambda: [away.rename(service.path), None][1]


def replace_by_nothing(service: Service) -> Callable[[], None]:
    away = service.path.with_name("away.db")
    service.path.rename(away)
    service.path.touch()
    return lambda: [away.rename(service.path), None][1]


def replace_by_a_folder(service: Service) -> Callable[[], None]:
    away = service.path.with_name("away.db")
    service.path.rename(away)
    service.path.mkdir()

    def put_back() -> None:
        service.path.rmdir()
        away.rename(service.path)

    return put_back


@pytest.mark.parametrize(
    "fail",
    [lock, fill_the_disk, write_protect, remove, replace_by_nothing, replace_by_a_folder],
    ids=lambda f: f.__name__,
)
def test_searches_continue_while_the_event_log_fails(
    service: Service, fail: Callable[[Service], Callable[[], None]], caplog: pytest.LogCaptureFixture
) -> None:
    first = service.search()["impression_id"]
    assert first is not None
    mend = fail(service)
    caplog.clear()
    with caplog.at_level(logging.INFO, LOGGER):
        for _ in range(5):
            assert service.search()["impression_id"] is None
        refused = service.click(first)
        assert refused.status_code == 503 and refused.json() == {
            "error": "the event log fails; the click was not recorded"
        }
        assert int(refused.headers["retry-after"]) > 0
        assert len(caplog.records) == 1 and "\n" not in caplog.text.rstrip() and str(service.path) in caplog.text
        metrics = service.client.get("/metrics").text
        assert "mim_event_log_up 0.0" in metrics and "mim_clicks_lost_total 1.0" in metrics
        assert 'mim_impressions_lost_total{arm="default"}' in metrics
        mend()
        service.now += module.RETRY_SECONDS
        again = service.search()["impression_id"]
        assert again is not None and service.click(again).json() == {"recorded": True}
        assert service.click(first).json() == {"recorded": True}  # what was recorded before is there
        assert len(caplog.records) == 2 and re.search(r"records again; [67] impressions", caplog.text)
    assert "mim_event_log_up 1.0" in service.client.get("/metrics").text


def test_it_is_retried_every_few_seconds_and_logged_every_minute(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def fail(*_: object) -> str:
        tries.append(service.now)
        raise OSError("no space left on device")

    monkeypatch.setattr(EventLog, "record_impression", fail)
    with caplog.at_level(logging.INFO, LOGGER):
        for service.now in range(121):
            service.search()
    assert tries == list(range(0, 121, int(module.RETRY_SECONDS)))
    assert len(caplog.records) == 3


def test_a_search_succeeds_when_its_impression_cannot_be_stored(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise ValueError("product 'a': holds a NUL character")

    monkeypatch.setattr(EventLog, "record_impression", refuse)
    assert service.search()["impression_id"] is None
