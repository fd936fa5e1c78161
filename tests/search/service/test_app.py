"""The HTTP API in this process: responses, refusals, and that the service continues after them."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from fastapi.testclient import TestClient
from PIL import Image

from mim_lightning.ab_report import ab_report
from mim_lightning.config import compose
from mim_lightning.online.assignment import Arm, Experiment
from mim_lightning.online.event_log import EventLog
from mim_lightning.search.service.app import make_app, make_routes
from mim_lightning.search.service.query_photos import QueryPhotos
from mim_lightning.search.service.request_limits import PixelBudget, RefusedError
from mim_lightning.search.service.server import read_api_key
from mim_lightning.serve import serve
from tests.data.images.hostile import png, scanned
from tests.search.service.color_shop import COLORS, FINGERPRINT, HalvesDetector, color_service, square
from tests.search.service.test_request_limits import png_of

LIMITS = {"upload_bytes": 100_000, "pixels": 10_000, "text_length": 50, "num_images": 2, "num_hits": 20}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    service = color_service(tmp_path, **LIMITS)
    with TestClient(make_app(service)) as client:
        yield client


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [hit["product_id"] for hit in answer.json()["hits"]]


def test_image_text_both_and_similar_products(client: TestClient) -> None:
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


def test_a_box_says_what_is_meant(client: TestClient) -> None:
    both = Image.new("RGB", (64, 32), COLORS["red"])
    both.paste(COLORS["blue"], (32, 0, 64, 32))
    both.save(out := io.BytesIO(), "PNG")
    photo = {"image": ("q.png", out.getvalue())}
    for box, color in (("0,0,0.5,1", "red"), ("[0.5, 0, 1, 1]", "blue")):
        assert ids(client.post("/search", files=photo, data={"box": box}))[0] == f"{color}-1"
    for box, message in (("0,0,1", "box=0,0,1: give left, top"), ("a,b", "box: give four fractions")):
        refused = client.post("/search", files=photo, data={"box": box})
        assert refused.status_code == 422 and message in refused.json()["error"]


def test_boxes_are_suggested_where_there_is_a_detector(client: TestClient, tmp_path: Path) -> None:
    photo = {"image": ("q.jpg", square("red"))}
    refused = client.post("/suggest_boxes", files=photo)
    assert refused.status_code == 404 and "detector.weights=<file>" in refused.json()["error"]
    app = make_app(color_service(tmp_path / "other", detector=HalvesDetector()), api_key="k")
    with TestClient(app) as other:
        assert other.post("/suggest_boxes", files=photo).status_code == 401
        other.headers["X-API-Key"] = "k"
        boxes = other.post("/suggest_boxes", files=photo).json()["boxes"]
        assert boxes[0] == {"box": [0, 0, 1, 0.5], "score": 0.9, "label": "cup"} and len(boxes) == 2
        damaged = other.post("/suggest_boxes", files={"image": ("q.jpg", square("red")[:200])})
        assert damaged.status_code == 415 and damaged.json()["error"].startswith("image 1: not a readable image")


def test_filters_and_numbers_of_hits(client: TestClient) -> None:
    cold = client.post("/search", data={"text": "red", "where": '{"category": "cold", "price": {"max": 20}}'})
    assert set(ids(cold)) == {"green-1", "blue-1"}
    assert len(ids(client.post("/search", data={"text": "red", "k": 2}))) == 2


def test_products_and_their_images(client: TestClient) -> None:
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


def in_utf_7(name: str, value: bytes) -> dict[str, Any]:
    """Return a form in an encoding that Python decodes to what no encoding can write."""
    body = b'--b\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + value + b"\r\n--b--\r\n"
    return {"content": body, "headers": {"content-type": "multipart/form-data; charset=utf-7; boundary=b"}}


FORM = {"content-type": "application/x-www-form-urlencoded"}
INVALID: list[tuple[dict[str, Any], int, str]] = [
    ({}, 422, "the query is empty"),
    ({"data": {"text": "red", "k": 0}}, 422, "k=0: must be at least 1"),
    ({"data": {"text": "red", "k": 21}}, 422, "k: 21, must be 1 to 20"),
    ({"data": {"text": "red", "k": "many"}}, 422, "k: Input should be a valid integer"),
    ({"data": {"text": "x" * 51}}, 413, "text: 51 characters, at most 50"),
    ({"data": {"fields": '{"query_text": "' + "x" * 51 + '"}'}}, 413, "fields.query_text: 51 characters, at most 50"),
    ({"data": {"text": "red", "fields": '{"text": "blue"}'}}, 422, "fields.text: is a part of every query; give text="),
    ({"data": {"text": "red", "weights": "[1]"}}, 422, "weights: must be a JSON object"),
    ({"data": {"text": "red", "weights": '{"image": "much"}'}}, 422, "weights.image: must be a number"),
    ({"data": {"text": "red", "weights": '{"picture": 1}'}}, 422, "weights.picture: no such part"),
    ({"data": {"text": "red", "where": "{category}"}}, 422, "where: not JSON"),
    ({"data": {"text": "red", "where": '{"colour": "red"}'}}, 400, "colour"),
    ({"data": {"text": "red", "weights": f'{{"text": {"9" * 400}}}'}}, 422, "weights.text: too large"),
    ({"data": {"text": "red", "where": f'{{"price": {{"max": {"9" * 400}}}}}'}}, 400, "cannot be compared"),
    ({"data": {"text": "  "}}, 422, "the query is empty; give"),
    ({"files": [("image", ("q.png", png(1, 4_000_000)))]}, 413, "1 x 4000000 pixels, at most"),
    ({"files": [("image", ("q.png", png(8, 900)))]}, 413, "one side is more than 100 times the other"),
    ({"files": [("image", ("q.jpg", scanned(101)))]}, 413, "scans of a progressive JPEG"),
    ({"data": {"text": "red", "weights": '{"text": 1e19}'}}, 422, "weights.text=1e+19: must be between 0 and"),
    ({"data": {"text": "red", "weights": '{"text": 1e308, "image": 1e308}'}}, 422, "weights.text=1e+308: must be"),
    ({"data": {"text": "red", "weights": '{"text": 1e999}'}}, 422, "weights: a number is too large"),
    ({"data": {"text": "red", "weights": '{"text": NaN}'}}, 422, "weights: not JSON (NaN is not a number)"),
    ({"data": {"text": "red", "weights": '{"text": -Infinity}'}}, 422, "weights: not JSON (-Infinity is not a number)"),
    ({"data": {"text": "red", "weights": '{"text": -0.0}'}}, 400, "cancel out"),
    ({"data": {"text": "red", "weights": '{"text": 1e-308}'}}, 400, "cancel out"),
    ({"data": {"text": "red", "weights": '{"text": 1, "text": 2}'}}, 422, "weights: not JSON (duplicate key 'text'"),
    ({"data": {"text": "red", "weights": '{"te\\ud800xt": 1}'}}, 422, "weights: contains a lone surrogate"),
    ({"data": {"text": "red", "where": '{"category": "\\udc00"}'}}, 422, "where: contains a lone surrogate"),
    ({"data": {"text": "red", "where": '{"category": ["\\ud800"]}'}}, 422, "where: contains a lone surrogate"),
    ({"data": {"text": "red", "where": '{"category": ' + "[" * 9000 + "]" * 9000 + "}"}}, 422, "where: nested deeper"),
    ({"data": {"text": "red", "where": '{"a":' * 17 + "1" + "}" * 17}}, 422, "where: nested deeper than 16 levels"),
    ({"data": {"text": "red", "where": "[" * 12_000 + "]" * 12_000}}, 413, "where: 24,000 characters, at most 20,000"),
    ({"data": {"text": "red", "k": "9" * 5000}}, 422, "k: "),
    ({"data": {"text": "red", "like": "\x00"}}, 404, "no product '\ufffd' in"),
    ({"data": {"text": "red", "arm": "a" * 20_000}}, 404, "arm 'aaaa"),
    ({"content": b"text=%ED%A0%80&k=1&k=two", "headers": FORM}, 422, "k: "),
    ({"content": b"--b\r\nbroken", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 422, "the query"),
    ({"content": b"{}", "headers": {"content-type": "multipart/form-data"}}, 400, ""),
    (in_utf_7("text", b"+2AA-"), 422, "text: contains a lone surrogate"),
    (in_utf_7("like", b"+2AA-"), 422, "like: contains a lone surrogate"),
    ({"data": {"text": "red"}, "headers": {"content-length": "9" * 5000}}, 413, "the request has 999,999,"),
    ({"files": {"image": ("q.jpg", square("red", side=90)[:-150])}}, 415, "image 1: damaged image"),
    ({"data": {"like": "pink-1"}}, 404, "pink-1"),
    ({"data": {"text": "red", "arm": "other"}}, 404, "arm 'other': no such arm; choose one of default"),
    ({"files": {"image": ("q.jpg", b"not a picture")}}, 415, "image 1: not a readable image"),
    ({"files": {"image": ("q.jpg", square("red")[:200])}}, 415, "image 1: "),
    ({"files": {"image": ("q.png", png_of(50_000, 50_000))}}, 413, "pixels"),
    ({"files": [("image", ("q.jpg", square("red")))] * 3}, 413, "image: 3 images, at most 2"),
    ({"files": {"image": ("q.jpg", b"x" * 200_000)}}, 413, "the request has 200,"),
]  # fmt: skip


@pytest.mark.parametrize(("request_parts", "status", "message"), INVALID, ids=[fault[2][:30] for fault in INVALID])
def test_invalid_requests_are_refused_and_the_service_continues(
    client: TestClient, request_parts: dict[str, Any], status: int, message: str
) -> None:
    answer = client.post("/search", **request_parts)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"] and "\n" not in answer.json()["error"]
    assert ids(client.post("/search", data={"text": "red"}))[0] == "red-1"


def test_thousands_of_parts(tmp_path: Path) -> None:
    service = color_service(tmp_path)
    with TestClient(make_app(service)) as client:
        files = client.post("/search", files=[("image", (f"{n}.jpg", b"x")) for n in range(1500)])
        fields = client.post("/search", data={f"field{n}": "x" for n in range(1500)}, files={"image": ("q.jpg", b"x")})
        assert [files.status_code, fields.status_code] == [400, 400]
        assert "Too many files" in files.json()["error"] and "Too many fields" in fields.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"\xff\xfe", b"[" * 50_000 + b"]" * 50_000, b'{"impression_id": ' + b"[" * 50_000, b"null", b"NaN",
        b'{"impression_id": "\\ud800", "product_id": "\\udfff"}', b'{"impression_id": {}, "product_id": NaN}',
        b'{"impression_id": "a", "impression_id": "b"}', b'{"impression_id": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_invalid_clicks_are_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/click", content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500 and "\n" not in answer.json()["error"]


def test_paths_that_no_product_has(client: TestClient) -> None:
    for path in (
        "/products/" + "a" * 5000,
        "/products/%ED%A0%80",
        "/products/%00",
        "/products/a/picture?arm=%ED%A0%80",
    ):
        answer = client.get(path)
        assert answer.status_code == 404 and len(answer.json()["error"]) < 600


def test_a_bug_is_answered_with_500_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = color_service(tmp_path)
    monkeypatch.setattr(service, "search", lambda *_, **__: 1 / 0)
    app = make_routes(service)
    for served in (make_app(service), app):  # with and without what is in front of the routes
        with TestClient(served, raise_server_exceptions=False) as client:
            answer = client.post("/search", data={"text": "red"})
        assert answer.status_code == 500 and answer.json() == {"error": "internal error; see the service's log"}
    assert caplog.text.count("Traceback") == 1 and "ZeroDivisionError" in caplog.text
    assert 'mim_requests_total{route="search",status="500"} 1.0' in TestClient(app).get("/metrics").text


def test_metadata_that_json_cannot_represent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = color_service(tmp_path)
    odd = {"title": "A \u2028 square", "price": float("nan"), "size": float("inf"), "made": datetime(2026, 1, 1)}
    find = service.engine().searcher.index.products
    monkeypatch.setattr(
        service.engine().searcher.index, "products", lambda ids: [{**product, **odd} for product in find(ids)]
    )
    with TestClient(make_app(service)) as client:
        assert client.post("/search", data={"text": "red"}).json()["hits"][0]["metadata"]["price"] is None
        assert client.get("/products/red-1").status_code == 200


def test_unknown_paths(client: TestClient) -> None:
    for path in ("/products/pink-1", "/products/pink-1/picture"):
        assert client.get(path).status_code == 404 and "pink-1" in client.get(path).json()["error"]
    assert client.get("/nowhere").status_code == 404
    assert client.post("/click", json={"impression_id": "x", "product_id": "y"}).status_code == 404
    assert client.post("/click", json={"product_id": "y"}).json() == {"error": "impression_id: Field required"}


def test_a_body_larger_than_announced(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 10_000

    answer = client.post("/search", content=chunks(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code in (400, 413)


def test_key_and_rate(tmp_path: Path) -> None:
    service = color_service(tmp_path, requests_per_minute=3)
    with TestClient(make_app(service, "secret")) as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"X-API-Key": "guess"}):
            answer = client.post("/search", data={"text": "red"}, headers=headers)
            assert answer.status_code == 401 and "X-API-Key" in answer.json()["error"]
        for path in ("/products/red-1", "/products/red-1/picture", "/metrics"):
            assert client.get(path).status_code == 401
        answers = [client.post("/search", data={"text": "red"}, headers={"X-API-Key": "secret"}) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert int(answers[-1].headers["retry-after"]) > 0


def test_a_key_of_any_letters_and_in_the_openapi_description(tmp_path: Path) -> None:
    service = color_service(tmp_path)
    with TestClient(make_app(service, "clé")) as client:
        assert client.post("/search", data={"text": "red"}, headers={b"X-API-Key": "clé".encode()}).status_code == 200
        described = client.get("/openapi.json").json()
    schemes = described["components"]["securitySchemes"]
    assert {(scheme["in"], scheme["name"]) for scheme in schemes.values()} == {("header", "X-API-Key")}
    assert described["paths"]["/search"]["post"]["security"] == [{name: []} for name in schemes]


@pytest.fixture
def damaged(tmp_path: Path) -> str:
    """Return an index that cannot be opened."""
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "card.json").touch()
    return f"index={tmp_path / 'damaged'}"


def test_an_empty_key_is_refused(damaged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIM_API_KEY", "")
    with pytest.raises(ValueError, match="MIM_API_KEY: is empty, which would accept every client"):
        serve(compose("serve", [damaged]))


def test_queries_are_recorded_with_impressions_alone(damaged: str) -> None:
    with pytest.raises(ValueError, match=r"record_queries=true: .*; give experiment_name too"):
        serve(compose("serve", [damaged, "record_queries=true"]))


def test_a_key_from_a_file_has_no_final_newline(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, read in (("secret\n", "secret"), ("secret\r\n", "secret"), (" a b ", " a b "), ("secret", "secret")):
        monkeypatch.setenv("MIM_API_KEY", given)
        assert read_api_key() == read
    for empty in ("", "\n", " \n"):
        monkeypatch.setenv("MIM_API_KEY", empty)
        with pytest.raises(ValueError, match="MIM_API_KEY: is empty"):
            read_api_key()
    monkeypatch.delenv("MIM_API_KEY")
    assert read_api_key() is None


def test_a_key_in_another_encoding_is_refused(tmp_path: Path) -> None:
    service = color_service(tmp_path)
    key = os.fsdecode(b"cl\xe9")  # of the environment, in Latin-1
    with TestClient(make_app(service, key)) as client:
        for given in ("clé".encode(), b""):
            assert client.post("/search", data={"text": "red"}, headers={b"X-API-Key": given}).status_code == 401


@pytest.mark.parametrize(
    ("host", "key", "is_warned"),
    [
        ("0.0.0.0", None, True),  # noqa: S104
        ("0.0.0.0", "secret", False),  # noqa: S104
        ("127.0.0.1", None, False),
        ("localhost", None, False),
    ],
)
def test_a_public_service_without_a_key_warns(
    host: str,
    key: str | None,
    is_warned: bool,
    damaged: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MIM_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("MIM_API_KEY", key)
    with pytest.raises(ValueError, match=r"damaged/card\.json"):
        serve(compose("serve", [damaged, f"host={host}", "port=0"]))
    warning = f"warning: host={host} accepts connections from other machines, and MIM_API_KEY is not set"
    assert (warning in capsys.readouterr().err) == is_warned


def test_trusted_proxies_are_validated_at_the_start(damaged: str) -> None:
    with pytest.raises(ValueError, match="forwarded_allow_ips=nginx: "):
        serve(compose("serve", [damaged, "forwarded_allow_ips=nginx"]))


def test_concurrent_requests_are_counted_by_client(tmp_path: Path) -> None:
    service = color_service(tmp_path, connections_per_client=2)
    waiting, go_on = [], threading.Event()

    def wait(*_: object, **__: object) -> None:
        waiting.append(1)
        assert go_on.wait(30)
        raise RefusedError(418, "waited")

    service.search = wait  # type: ignore[method-assign, assignment]
    with TestClient(make_app(service)) as client, ThreadPoolExecutor(2) as threads:
        at_work = [threads.submit(client.post, "/search", data={"text": "red"}) for _ in range(2)]
        while len(waiting) < 2 and not all(request.done() for request in at_work):
            time.sleep(0.01)
        refused = client.post("/search", data={"text": "red"})
        assert refused.status_code == 429 and "the limit of 2 concurrent requests" in refused.json()["error"]
        assert client.get("/health").status_code == 200
        go_on.set()
        assert [answer.result().status_code for answer in at_work] == [418, 418]
        assert client.post("/search", data={"text": "red"}).status_code == 418


def test_the_url_of_an_event_log_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIM_EVENTS", "postgresql://me:secret@host/events")
    assert compose("serve", ["index=nowhere"])["event_log"] == "postgresql://me:secret@host/events"
    assert compose("ab_report", [])["event_log"] == compose("serve", ["index=nowhere"])["event_log"]


def test_an_experiment_is_recorded_without_the_user(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path / "events.db"))
    arms = {"default": Arm("default"), "other": Arm("other")}
    service = color_service(tmp_path, tuple(arms), Experiment("colours", arms, "s" * 32, log))
    with TestClient(make_app(service)) as client:
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
    counts = log.counts("colours").arms
    assert sum(arm.num_users for arm in counts.values()) == 40
    assert sum(arm.num_impressions for arm in counts.values()) == 80
    assert sum(arm.num_clicked for arm in counts.values()) == 1


def test_what_is_asked_is_recorded_on_request_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events, arms = str(tmp_path / "events.db"), {"default": Arm("default")}
    photo = Image.new("RGB", (2000, 1000), (200, 40, 40))
    data = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    photo.save(data, "JPEG", exif=exif)
    image = {"image": ("q.jpg", data.getvalue())}
    search = {"files": image, "data": {"user": "ann"}}
    own = {"query_id": "q7", "photo": "s3://shop/7.jpg"}
    written = compose("ab_report", [f"event_log={events}", f"write_clicks={tmp_path / 'clicks'}"])
    with EventLog(events) as log:
        service = color_service(tmp_path, ("default",), Experiment("e", arms, "s" * 32, log))
        with TestClient(make_app(service)) as client:
            assert client.post("/search", **search).json()["impression_id"]
    with pytest.raises(ValueError, match="has no recorded queries to write; serve with record_queries=true"):
        ab_report(written)
    assert not (tmp_path / "clicks").exists()
    with EventLog(events, with_queries=True) as log:
        service = color_service(tmp_path / "again", ("default",), Experiment("e", arms, "s" * 32, log, True))
        budget = PixelBudget(10_000_000)
        service.photos = QueryPhotos(tmp_path / "photos", budget)

        def ask(files: Any = image, **data: str) -> Any:
            return client.post("/search", files=files, data={"user": "bob"} | data)

        with TestClient(make_app(service)) as client:
            ask(text="blue")
            with pytest.raises(ValueError, match="to write; left out: 1 query of photo and words"):
                ab_report(written)
            first, again = (client.post("/search", **search).json() for _ in range(2))
            ask(**own)
            ask(None, text="blue", **own | {"query_id": "q8"})
            client.post("/search", data={"user": "bob", "text": "blue", "arm": "default"} | own)
            client.post("/click", json={"impression_id": first["impression_id"], "product_id": "red-1"})
            too_long = client.post("/search", data={"user": "bob", "text": "blue", "query_id": "q" * 501})
            assert too_long.status_code == 413 or too_long.status_code == 422
            for name in ("query_id", "photo", "text"):
                assert ask(**{name: "a\0"}).status_code == 422
            # what a row cannot say has its id alone; two boxes are two queries, whose parts are stored
            asked = [ask(box=json.dumps(box)) for box in ([0, 0, 0.5, 1], [0.5, 0, 1, 1])]
            asked += [ask(not_text="red", **own | {"query_id": "q9"}), ask(where='{"category": "warm"}')]
            asked += [ask(None, like="red-1")]
            (tmp_path / "file").touch()
            service.photos = QueryPhotos(tmp_path / "file", budget)  # a folder that cannot be made
            asked += [ask({"image": ("q.jpg", square("blue"))})]
            service.photos, refused = QueryPhotos(tmp_path / "others", budget), RefusedError(503, "too many")
            monkeypatch.setattr(budget, "reserve", Mock(side_effect=refused))  # photos wait as all images do
            asked += [ask({"image": ("q.jpg", square("blue"))})]
            assert all(answer.json()["impression_id"] for answer in asked)
    ab_report(written)
    left_out = "4 queries without a kept photo, or with parts that a row has no column for; left out: 1 query of photo"
    assert f"5 queries, 24 impressions; left out: {left_out}" in capsys.readouterr().out
    with (tmp_path / "clicks" / "queries.csv").open() as file:
        queries = {row["query_id"]: row for row in csv.DictReader(file)}
    assert queries["q7"]["image"] == "s3://shop/7.jpg"
    assert (queries["q8"]["image"], queries["q8"]["text"]) == ("", "blue")
    hashed = queries.keys() - {"q7", "q8"}
    assert {len(query_id) for query_id in hashed} == {32} and again["impression_id"]
    sizes = {}
    for query_id in hashed:
        with Image.open(queries[query_id]["image"]) as kept:
            assert not kept.getexif()
            sizes[query_id] = kept.size
    assert sorted(sizes.values()) == [(1000, 1000), (1000, 1000), (1024, 512)]
    with (tmp_path / "clicks" / "impressions.csv").open() as file:
        clicked = [row for row in csv.DictReader(file) if row["clicked"] == "1"]
    (whole,) = (query_id for query_id, size in sizes.items() if size == (1024, 512))
    assert [(row["query_id"], row["product_id"], row["position"]) for row in clicked] == [(whole, "red-1", "1")]
