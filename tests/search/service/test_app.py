"""The service over HTTP, in this process: what it answers, what it refuses, and that it lives on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from fastapi.testclient import TestClient

from mim_lightning.config import compose
from mim_lightning.online.arms import Arm
from mim_lightning.online.event_log import EventLog
from mim_lightning.online.experiment import Experiment
from mim_lightning.search.service.app import behind_gate, make_app
from mim_lightning.serve import serve
from tests.search.service.shopfronts import FINGERPRINT, colour_shop, square
from tests.search.service.test_limits import png_of

LIMITS = {"upload_bytes": 100_000, "pixels": 10_000, "text_length": 50, "num_images": 2, "num_hits": 20}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    shopfront = colour_shop(tmp_path, **LIMITS)
    with TestClient(behind_gate(make_app(shopfront), shopfront, None)) as client:
        yield client


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [hit["product_id"] for hit in answer.json()["hits"]]


def test_photo_words_both_and_more_like_this(client: TestClient) -> None:
    photo = {"image": ("q.jpg", square("blue"))}
    assert ids(client.post("/search", files=photo))[0] == "blue-1"
    assert ids(client.post("/search", data={"text": "red"}))[0] == "red-1"
    both = client.post("/search", files=photo, data={"text": "red", "weights": '{"image": 0.1}'}).json()
    assert both["hits"][0]["product_id"] == "red-1" and set(both["hits"][0]["parts"]) == {"image", "text"}
    assert both["arm"] == "default" and both["impression_id"] is None
    assert set(both["timing_ms"]) == {"encode", "index", "total"}
    assert "red-1" not in ids(client.post("/search", data={"like": "red-1"}))
    without = ids(client.post("/search", data={"text": "grey", "not_text": "grey blue", "weights": '{"not_text": 1}'}))
    assert without[-1] == "blue-1"


def test_filters_and_numbers_of_hits(client: TestClient) -> None:
    cold = client.post("/search", data={"text": "red", "where": '{"category": "cold", "price": {"max": 20}}'})
    assert set(ids(cold)) == {"green-1", "blue-1"}
    assert len(ids(client.post("/search", data={"text": "red", "k": 2}))) == 2


def test_products_and_their_pictures(client: TestClient) -> None:
    hit = client.post("/search", data={"text": "green"}).json()["hits"][0]
    assert client.get(hit["picture"]).content == square("green")
    facts = client.get("/products/green-1").json()
    assert facts == {"product_id": "green-1", "title": "A green square", "category": "cold", "price": 10.0}


def test_health_metrics_and_description(client: TestClient) -> None:
    client.post("/search", data={"text": "red"})
    health = client.get("/health").json()
    assert health["status"] == "ok" and health["arms"]["default"]["fingerprint"] == FINGERPRINT
    metrics = client.get("/metrics").text
    assert 'mim_requests_total{route="search",status="200"} 1.0' in metrics
    assert 'mim_index_products{arm="default"} 4.0' in metrics
    assert "/search" in client.get("/openapi.json").json()["paths"]


FAULTS: list[tuple[dict[str, Any], int, str]] = [
    ({}, 422, "the query is empty"),
    ({"data": {"text": "red", "k": 0}}, 422, "k=0: must be at least 1"),
    ({"data": {"text": "red", "k": 21}}, 422, "k: 21, must be 1 to 20"),
    ({"data": {"text": "red", "k": "many"}}, 422, "k: Input should be a valid integer"),
    ({"data": {"text": "x" * 51}}, 413, "text: 51 characters, at most 50"),
    ({"data": {"text": "red", "weights": "[1]"}}, 422, "weights: must be a JSON object"),
    ({"data": {"text": "red", "weights": '{"image": "much"}'}}, 422, "weights.image: must be a number"),
    ({"data": {"text": "red", "weights": '{"picture": 1}'}}, 422, "weights.picture: no such part"),
    ({"data": {"text": "red", "where": "{category}"}}, 422, "where: not JSON"),
    ({"data": {"text": "red", "where": '{"colour": "red"}'}}, 400, "colour"),
    ({"data": {"text": "red", "weights": f'{{"text": {"9" * 400}}}'}}, 422, "weights.text: too large"),
    ({"data": {"text": "red", "where": f'{{"price": {{"max": {"9" * 400}}}}}'}}, 400, "cannot be compared"),
    ({"data": {"text": "  "}}, 422, "the query is empty; give"),
    ({"files": {"image": ("q.jpg", square("red", side=90)[:-150])}}, 415, "image 1: damaged image"),
    ({"data": {"like": "pink-1"}}, 404, "pink-1"),
    ({"data": {"text": "red", "arm": "other"}}, 404, "arm 'other': there is no such arm; there are default"),
    ({"files": {"image": ("q.jpg", b"not a picture")}}, 415, "image 1: not a readable image"),
    ({"files": {"image": ("q.jpg", square("red")[:200])}}, 415, "image 1: "),
    ({"files": {"image": ("q.png", png_of(50_000, 50_000))}}, 413, "pixels"),
    ({"files": [("image", ("q.jpg", square("red")))] * 3}, 413, "image: 3 pictures, at most 2"),
    ({"files": {"image": ("q.jpg", b"x" * 200_000)}}, 413, "the request has 200,"),
]  # fmt: skip


@pytest.mark.parametrize(("request_parts", "status", "message"), FAULTS, ids=[fault[2][:30] for fault in FAULTS])
def test_what_is_wrong_is_said_and_the_service_lives_on(
    client: TestClient, request_parts: dict[str, Any], status: int, message: str
) -> None:
    answer = client.post("/search", **request_parts)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"] and "\n" not in answer.json()["error"]
    assert ids(client.post("/search", data={"text": "red"}))[0] == "red-1"


def test_unknown_places(client: TestClient) -> None:
    for path in ("/products/pink-1", "/products/pink-1/picture"):
        assert client.get(path).status_code == 404 and "pink-1" in client.get(path).json()["error"]
    assert client.get("/nowhere").status_code == 404
    assert client.post("/click", json={"impression_id": "x", "product_id": "y"}).status_code == 404
    assert client.post("/click", json={"product_id": "y"}).json() == {"error": "impression_id: Field required"}


def test_a_body_larger_than_it_says(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 10_000

    answer = client.post("/search", content=chunks(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code in (400, 413)


def test_key_and_rate(tmp_path: Path) -> None:
    shopfront = colour_shop(tmp_path, requests_per_minute=3)
    with TestClient(behind_gate(make_app(shopfront), shopfront, "secret")) as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"X-API-Key": "guess"}):
            answer = client.post("/search", data={"text": "red"}, headers=headers)
            assert answer.status_code == 401 and "X-API-Key" in answer.json()["error"]
        for path in ("/products/red-1", "/products/red-1/picture", "/metrics"):
            assert client.get(path).status_code == 401
        answers = [client.post("/search", data={"text": "red"}, headers={"X-API-Key": "secret"}) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert int(answers[-1].headers["retry-after"]) > 0


def test_a_key_of_any_letters_and_its_place_in_the_description(tmp_path: Path) -> None:
    shopfront = colour_shop(tmp_path)
    with TestClient(behind_gate(make_app(shopfront, has_key=True), shopfront, "clé")) as client:
        assert client.post("/search", data={"text": "red"}, headers={b"X-API-Key": "clé".encode()}).status_code == 200
        described = client.get("/openapi.json").json()
    schemes = described["components"]["securitySchemes"]
    assert {(scheme["in"], scheme["name"]) for scheme in schemes.values()} == {("header", "X-API-Key")}
    assert described["paths"]["/search"]["post"]["security"] == [{name: []} for name in schemes]


def test_an_empty_key_is_not_taken_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIM_API_KEY", "")
    with pytest.raises(ValueError, match="MIM_API_KEY: is empty, and would let everyone in"):
        serve(compose("serve", ["index=nowhere"]))


def test_a_url_with_a_password_need_not_stand_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIM_EVENTS", "postgresql://me:secret@host/events")
    assert compose("serve", ["index=nowhere"])["events"] == "postgresql://me:secret@host/events"
    assert compose("report", [])["events"] == compose("serve", ["index=nowhere"])["events"]


def test_an_experiment_is_recorded_without_the_user(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path / "events.db"))
    arms = {"default": Arm("default"), "other": Arm("other")}
    shopfront = colour_shop(tmp_path, tuple(arms), Experiment("colours", arms, "s" * 32, log))
    with TestClient(behind_gate(make_app(shopfront), shopfront, None)) as client:
        seen = {user: client.post("/search", data={"text": "red", "user": user}).json() for user in map(str, range(40))}
        assert {answer["arm"] for answer in seen.values()} == {"default", "other"}
        for user, answer in seen.items():
            assert client.post("/search", data={"text": "blue", "user": user}).json()["arm"] == answer["arm"]
        first = seen["0"]
        event = {"impression_id": first["impression_id"], "product_id": first["hits"][0]["product_id"]}
        assert client.post("/click", json=event).json() == {"recorded": True}
        assert client.post("/click", json=event).json() == {"recorded": False}
        assert client.post("/click", json={**event, "product_id": "pink"}).status_code == 404
        asked_by_name = client.post("/search", data={"text": "red", "user": "0", "arm": "other"}).json()
        assert asked_by_name["impression_id"] is None and asked_by_name["arm"] == "other"
        assert client.post("/search", data={"text": "red"}).json()["impression_id"] is None
    counts = log.arm_counts("colours")
    assert sum(arm.num_users for arm in counts.values()) == 40
    assert sum(arm.num_impressions for arm in counts.values()) == 80
    assert sum(arm.num_clicked for arm in counts.values()) == 1
