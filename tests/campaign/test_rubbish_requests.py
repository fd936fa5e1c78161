"""Malformed requests get a 4xx in one line, and the service goes on serving."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from fastapi.testclient import TestClient

from mim_lightning.search.service.app import make_app
from tests.campaign.malformed import PATIENCE, every, time_limit
from tests.campaign.outcomes import record_outcome
from tests.campaign.rubbish_requests import REQUESTS, SOCKETS, BadBytes, BadRequest
from tests.search.service.color_shop import color_service
from tests.search.service.test_connections import connected, rest, served

LIMITS = {"upload_bytes": 100_000, "pixels": 100_000, "text_length": 50, "num_images": 2, "num_hits": 20}
NUM_ANSWERS = 100_000  # bytes of an answer to rubbish, at most


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    service = color_service(tmp_path_factory.mktemp("shop"), requests_per_minute=0, **LIMITS)
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("case", every(REQUESTS, 8))
def test_malformed_requests(case: BadRequest, client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with record_outcome("rubbish", "HTTP request", case.wrong) as found, time_limit(PATIENCE):
        answer = client.request(case.method, case.path, **case.options)
        assert answer.status_code in case.statuses, f"{answer.status_code}: {answer.text[:300]}"
        error = answer.json()["error"]
        assert error.strip() and "\n" not in error and "Traceback" not in error, error
        assert not [one for one in caplog.records if one.levelno >= logging.ERROR], "the log has a call stack"
        assert client.post("/search", data={"text": "red"}).json()["hits"][0]["product_id"] == "red-1"
        found.outcome = f"{answer.status_code} in one line"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with served(tmp_path_factory.mktemp("shop")) as port:
        yield port


@pytest.mark.parametrize("case", every(SOCKETS, 9))
def test_malformed_bytes(case: BadBytes, port: int) -> None:
    with record_outcome("rubbish", "HTTP connection", case.wrong) as found, time_limit(PATIENCE):
        with connected(port, *case.parts) as connection:
            answer = rest(connection)
        status = int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else 0
        assert status in case.statuses, answer[:300]
        assert b"Traceback" not in answer and len(answer) < NUM_ANSWERS
        assert healthy(port)
        found.outcome = f"{status} and closed" if status else "closed without an answer"


def healthy(port: int) -> Any:
    with connected(port, b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n") as connection:
        return b"200 OK" in rest(connection)
