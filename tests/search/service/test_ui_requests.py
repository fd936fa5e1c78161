"""The user interface against hostile clients: whatever path they send, only their own uploads are read."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

if find_spec("gradio") is None:  # importing takes seconds, in every process that collects
    pytest.skip("the extra `serve` is not installed", allow_module_level=True)

from fastapi.testclient import TestClient

from mim_lightning.search.service.app import make_app
from mim_lightning.search.service.uploads import Uploads
from tests.search.service.color_shop import color_service, square

SECRET = "content that must not be served"
META = {"meta": {"_type": "gradio.FileData"}}


class Browser:
    """A client with one open page that can send any value for its components."""

    def __init__(self, client: TestClient) -> None:
        self.client, self.session = client, uuid.uuid4().hex
        config = client.get("/config").json()
        kinds = {component["id"]: component["type"] for component in config["components"]}
        calls = [[kinds[item] for item in call["inputs"]] for call in config["dependencies"]]
        self.call = next(call for call, inputs in zip(config["dependencies"], calls, strict=True) if "image" in inputs)
        self.calls = config["dependencies"]
        self.kinds = [kinds[item] for item in self.call["inputs"]]
        labels = {component["id"]: component["props"] for component in config["components"]}
        self.values = [labels[item].get("value") for item in self.call["inputs"]]

    def upload(self, data: bytes, name: str = "q.jpg") -> str:
        answer = self.client.post("/gradio_api/upload", params={"upload_id": "u"}, files={"files": (name, data)})
        assert answer.status_code == 200, answer.text
        return str(answer.json()[0])

    def join(self, **changes: Any) -> Any:
        call = {"data": self.values, "fn_index": self.call["id"], "session_hash": self.session, **changes}
        return self.post(json.dumps(call))

    def post(self, body: str | bytes) -> Any:
        return self.client.post("/gradio_api/queue/join", content=body, headers={"content-type": "application/json"})

    def search(self, event_data: Any = None, **values: Any) -> dict[str, Any]:
        """Send values by kind of component, or by their place; return the message that ends the search."""
        places = {f"place{number}": number for number in range(len(self.kinds))}
        data = list(self.values)
        for name, value in values.items():
            data[places[name] if name in places else self.kinds.index(name)] = value
        answer = self.join(data=data, event_data=event_data)
        if answer.status_code != 200:
            assert 400 <= answer.status_code < 500, answer.text
            return {"success": False, "output": answer.json()}
        text = self.client.get("/gradio_api/queue/data", params={"session_hash": self.session}).text
        messages = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
        return next(message for message in messages if message["msg"] == "process_completed")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    service = color_service(tmp_path_factory.mktemp("shop"))
    with TestClient(make_app(service, has_ui=True)) as client:
        yield client


@pytest.fixture
def browser(client: TestClient) -> Browser:
    return Browser(client)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "secret.jpg").write_text(SECRET)
    return tmp_path / "secret.jpg"


def served_files() -> set[Path]:
    return {path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()}


def test_an_upload_is_searched_and_served(browser: Browser) -> None:
    path = browser.upload(square("blue"))
    done = browser.search(image={"path": path, "url": f"http://testserver/gradio_api/file={path}", **META})
    assert done["success"], done
    assert "A blue square" in done["output"]["data"][1][0]["caption"]
    assert browser.client.get(f"/gradio_api/file={path}").content == square("blue")
    shown = done["output"]["data"][1][0]["image"]["url"]
    assert browser.client.get(shown).status_code == 200


def test_several_images_are_searched(browser: Browser) -> None:
    images = [{"path": browser.upload(square(color)), **META} for color in ("blue", "green", "green", "green")]
    done = browser.search(image=images[0], gallery=[{"image": image, "caption": None} for image in images[1:]])
    assert done["success"], done
    assert "A green square" in done["output"]["data"][1][0]["caption"]


def test_more_images_than_a_search_takes_are_not_read(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = {"image": {"path": browser.upload(square("red"))}}
    monkeypatch.setattr("mim_lightning.search.service.ui.read_photo", None)
    assert "5 more images, at most 4 are searched" in browser.search(gallery=[photo] * 5)["output"]["error"]


def test_a_corner_is_of_the_image_that_was_clicked(browser: Browser, client: TestClient) -> None:
    image = next(call["inputs"][1] for call in browser.calls if call["targets"][0][1] == "select")
    browser.call = next(call for call in browser.calls if [image, "select"] in map(list, call["targets"]))
    browser.kinds = ["state", *browser.kinds]
    browser.values = [None, *browser.values]
    first, second = (browser.upload(square(color)) for color in ("red", "blue"))

    def click(path: str, x: int, y: int) -> Any:
        done = browser.search(image={"path": path, **META}, event_data={"index": [x, y], "value": None})
        return done["output"]["data"]

    assert "Now click the opposite corner" in str(click(first, 1, 1))
    assert "Now click the opposite corner" in str(click(second, 9, 9)), "the first corner was of another image"
    assert "A blue square" in str(click(second, 20, 20))


def test_a_slider_sends_its_value_once_more(browser: Browser) -> None:
    assert "must be an object or null" in str(browser.search(textbox="red", event_data=0.7)["output"])
    browser.call = next(call for call in browser.calls if call["targets"][0][1] == "release")
    assert browser.search(textbox="red", slider=0.7, event_data=0.7)["success"]


def test_text_alone_is_searched(browser: Browser) -> None:
    done = browser.search(textbox="red")
    assert done["success"] and "A red square" in done["output"]["data"][1][0]["caption"]


def foreign_paths(secret: Path) -> Iterator[str]:
    """Paths of files that were not uploaded."""
    link = secret.with_name("link.jpg")
    link.symlink_to(secret)
    fifo = secret.with_name("fifo.jpg")
    os.mkfifo(fifo)
    folder = os.environ["GRADIO_TEMP_DIR"]
    inside = Path(folder) / "left-by-others"
    inside.mkdir(exist_ok=True)
    if not (inside / "link.jpg").exists():
        (inside / "link.jpg").symlink_to(secret)
    yield from (str(secret), str(link), str(fifo), str(secret.parent), f"file://{secret}", f"//host{secret}")
    yield from (
        "/proc/self/environ",
        "/dev/zero",
        "/dev/stdin",
        "/etc/hostname",
        "~/.bashrc",
        ".",
        "",
        "\x00",
        "a" * 5000,
    )
    yield from (
        f"{folder}/../{secret.parent.name}/{secret.name}",
        os.path.relpath(secret, folder),
        str(inside / "link.jpg"),
    )
    yield from (
        f"http://127.0.0.1:9{secret}",
        "https://example.org/a.jpg",
        "\\\\host\\share\\a.jpg",
        folder,
        f"{folder}/",
    )


def test_no_other_file_is_read_copied_or_served(browser: Browser, secret: Path) -> None:
    paths = list(foreign_paths(secret))
    before = served_files()
    for path in paths:
        for value in ({"path": path, **META}, {"path": path, "is_stream": True, **META}, {"path": path}):
            done = browser.search(image=value)
            assert not done["success"] and SECRET not in json.dumps(done), (path, done)
        shown = browser.client.get(f"/gradio_api/file={quote(path)}")
        assert 400 <= shown.status_code < 500 and SECRET not in shown.text, (path, shown)
    assert served_files() <= before


def test_files_in_other_components_and_under_other_names_are_refused(browser: Browser, secret: Path) -> None:
    file = {"path": str(secret), **META}
    own = {"path": browser.upload(square("red")), **META}
    before = served_files()
    for place in range(len(browser.kinds)):
        values = [
            file,
            [file],
            {"image": file},
            [[{"image": file, "caption": None}]],
            {"value": file},
            [own],
            {"a": own},
        ]
        for value in values:
            done = browser.search(
                **{f"place{place}": value, "textbox": "red" if browser.kinds[place] != "textbox" else value}
            )
            assert SECRET not in json.dumps(done)
            if done["success"]:  # the server's own state is not taken from a browser at all
                assert browser.kinds[place] == "state"
    for value in (
        str(secret),
        [str(secret)],
        {"url": f"file://{secret}", **META},
        {"path": None, "url": "http://127.0.0.1:9/", **META},
        {**own, "path": [own["path"]]},
        {"url": "data:image/png;base64,AAAA", "path": "x", **META},
        3,
        True,
        [own],
    ):
        assert not browser.search(image=value)["success"], value
    assert served_files() <= before


def test_a_full_disk_leaves_no_partial_upload(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = served_files()
    monkeypatch.setattr(Path, "write_bytes", write_half)
    answer = browser.client.post("/gradio_api/upload", params={"upload_id": "u"}, files={"files": ("q.jpg", b"x" * 99)})
    assert answer.status_code == 503 and "No space left" in answer.json()["error"]
    assert served_files() == before


def test_the_temporary_folder_itself_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.jpg").write_text(SECRET)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    service = color_service(tmp_path / "shop")
    with TestClient(make_app(service, has_ui=True)) as client:
        assert client.get(f"/gradio_api/file={tmp_path}/other.jpg").status_code == 404
        path = Browser(client).upload(square("red"))
        assert Path(path).is_relative_to(tmp_path) and client.get(f"/gradio_api/file={path}").status_code == 200


def test_an_upload_does_not_block_the_event_loop(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing 12 MB takes a while, in which other clients must be served."""
    add = Uploads.add

    def added(*args: Any) -> Path:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return add(*args)

    monkeypatch.setattr(Uploads, "add", added)
    assert Path(browser.upload(square("red"))).is_file()


def test_other_keys_of_an_upload_are_ignored(browser: Browser, secret: Path) -> None:
    before = served_files()
    own = {"path": browser.upload(square("red")), **META}
    done = browser.search(
        image={**own, "url": f"file://{secret}", "orig_name": "../../x.svg", "mime_type": "text/html"}
    )
    assert done["success"] and "A red square" in done["output"]["data"][1][0]["caption"]
    assert all(path.suffix in (".jpg", ".webp") for path in served_files() - before)


def test_file_names_of_uploads_are_ignored(browser: Browser, tmp_path: Path) -> None:
    for name in ("../../../x.jpg", f"{tmp_path}/x.jpg", "..", " ", "a\x00b", "x.svg", "x.html", "\ud800", "a" * 4000):
        path = Path(browser.upload(b"<svg onload=alert(1)>", name.encode(errors="replace").decode()))
        assert path.is_relative_to(os.environ["GRADIO_TEMP_DIR"]) and path.suffix == ".bin"
        assert path.read_bytes() == b"<svg onload=alert(1)>" and not list(tmp_path.iterdir())
        shown = browser.client.get(f"/gradio_api/file={path}")
        assert shown.headers["content-type"] == "application/octet-stream"
        assert shown.headers["content-disposition"].startswith("attachment")


def test_only_needed_routes_are_served(browser: Browser, secret: Path) -> None:
    client = browser.client
    for path in (
        "proxy=http://127.0.0.1:9/",
        "file=http://127.0.0.1:9/x.png",
        f"file/{secret}",
        "run/search",
        "api/search",
        "call/search/1",
        "stream/a/b/1/playlist.m3u8",
        "stream/a/b/1/playlist-file",
        "component_server",
        "process_recording",
        "dev/reload",
        "custom_component/a/client/b/c",
        "deep_link?session_hash=a",
        "runs",
        "openapi.json",
        "vibe-code",
        "queue/status",
        "queue/data?session_hash=none",
        "upload_progress/x",
        "run-history/buckets",
        "../gradio_api/proxy=http://127.0.0.1:9/",
    ):
        for answer in (client.get(f"/gradio_api/{path}"), client.post(f"/gradio_api/{path}", json={"data": []})):
            assert answer.status_code in (404, 405), (path, answer.text)
            assert "error" in answer.json()
    for path in (
        "/monitoring",
        "/monitoring/summary",
        "/?deep_link=a",
        "/config?deep_link=..",
        "/pwa_icon",
        "/nowhere",
    ):
        assert client.get(path).status_code == 404
    for path in ("/", "/config", "/gradio_api/info", "/theme.css"):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    "where", ["/static/", "/svelte/", "/assets/", "/gradio_api/file=", "/gradio_api/heartbeat/../"]
)
@pytest.mark.parametrize(
    "name", ["a" * 5000, "%00", "..%2f..%2fpages.py", "%2e%2e/", "\u202e", "%ED%A0%80", "", "/etc/passwd"]
)
def test_invalid_file_names(client: TestClient, where: str, name: str) -> None:
    assert 400 <= client.get(where + name).status_code < 500


@pytest.mark.parametrize(
    "wanted", ["bytes=1-2-3", "bytes=9-1", "bytes=" + "9" * 400 + "-", "bytes=0-" + "9" * 5000, "-"]
)
def test_ranges_of_an_upload_are_ignored(browser: Browser, wanted: str) -> None:
    path = browser.upload(square("blue"))
    answer = browser.client.get(f"/gradio_api/file={path}", headers={"range": wanted})
    assert answer.status_code == 200 and answer.content == square("blue")


CALLS: list[tuple[dict[str, Any], int]] = [
    ({"data": []}, 422),
    ({"data": {}}, 422),
    ({"data": [None] * 500}, 422),
    ({"fn_index": 10**6}, 422),
    ({"fn_index": -1}, 422),
    ({"fn_index": "0"}, 422),
    ({"fn_index": True}, 422),
    ({"session_hash": None}, 422),
    ({"session_hash": "../.."}, 422),
    ({"session_hash": "a" * 65}, 422),
    ({"batched": True}, 422),
    ({"event_data": []}, 422),
    ({"request": {}}, 422),
    ({"event_id": "a"}, 422),
    ({"oauth_token": "a"}, 422),
    ({"padding": "a" * 70_000}, 413),
]


@pytest.mark.parametrize(("changes", "status"), CALLS)
def test_invalid_calls_are_refused(browser: Browser, changes: dict[str, Any], status: int) -> None:
    answer = browser.join(**changes)
    assert answer.status_code == status and "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"nothing",
        b"\xff\xfe",
        b'{"data": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b"[" * 60_000,
        b'{"data": [NaN]}',
        b'{"data": ["\\ud800"]}',
        b'{"data": [1e999]}',
        b'{"data": [], "data": []}',
    ],
)
def test_invalid_bodies_are_refused(browser: Browser, body: bytes) -> None:
    answer = browser.post(body)
    assert answer.status_code in (413, 422) and "\n" not in answer.json()["error"]


def test_invalid_values_are_refused_and_the_page_continues(browser: Browser) -> None:
    for kind in dict.fromkeys(browser.kinds):
        for value in (
            1e308,
            10**400,
            -5,
            [],
            {},
            "\x00",
            ["a"],
            True,
            "a" * 20_000,
            {"__type__": "update", "value": "a"},
        ):
            done = browser.search(**{"textbox": "red", kind: value})
            assert done["success"] or (done["output"]["error"] and "Traceback" not in done["output"]["error"]), (
                kind,
                value,
            )
    assert browser.search(textbox="red")["success"]


def test_unfetched_responses_are_bounded(browser: Browser) -> None:
    statuses = [browser.join().status_code for _ in range(40)]
    assert set(statuses) == {200, 429} and statuses.index(429) <= 16


def test_the_state_of_closed_pages_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mim_lightning.search.service.ui_requests.MAX_PAGES", 4)
    service = color_service(tmp_path)
    app: Any = make_app(service, has_ui=True)
    page = app.app.routes[-1].app.get_blocks()
    with TestClient(app) as client:
        for _ in range(20):
            browser = Browser(client)
            assert browser.join().status_code == 200
        assert browser.search(textbox="red")["success"]
        assert len(page._queue.pending_messages_per_session) <= 4 and len(page.state_holder.session_data) <= 4
        assert len(page._queue.pending_event_ids_session) <= 16


def test_a_click_on_nothing_is_no_error(browser: Browser, capfd: pytest.CaptureFixture[str]) -> None:
    config = browser.client.get("/config").json()
    selects = [call for call in config["dependencies"] if any(target[1] == "select" for target in call["targets"])]
    clicks = (
        {"index": "a"},
        {"index": 10**9, "value": {}},
        {"index": 0, "value": {"caption": 3}},
        {"index": [None, 3]},
    )
    assert len(selects) == 3  # of the image and of both grids
    for event in (None, {}, *clicks, {"index": [3, 4]}):
        for select in selects:
            answer = browser.join(data=[None] * len(select["inputs"]), fn_index=select["id"], event_data=event)
            assert answer.status_code in (200, 422), answer.text
            if answer.status_code == 200:
                text = browser.client.get("/gradio_api/queue/data", params={"session_hash": browser.session}).text
                assert "process_completed" in text
    assert "Traceback" not in "".join(capfd.readouterr())


def test_the_oldest_uploads_are_removed_first(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mim_lightning.search.service.uploads.MAX_PER_CLIENT", 2)
    browser = Browser(client)
    paths = [Path(browser.upload(square("red"))) for _ in range(3)]
    assert [path.exists() for path in paths] == [False, True, True] and not paths[0].parent.exists()
    assert "upload it again" in browser.search(image={"path": str(paths[0]), **META})["output"]["error"]
    assert browser.search(image={"path": str(paths[2]), **META})["success"]


def test_with_a_key_nothing_is_uploaded_or_served_before_the_login(tmp_path: Path) -> None:
    service = color_service(tmp_path)
    with TestClient(make_app(service, "sesame", has_ui=True)) as client:
        photo = {"files": ("q.jpg", square("red"))}
        assert client.post("/gradio_api/upload", files=photo).status_code == 401
        assert client.post("/gradio_api/queue/join", json={}).status_code in (401, 422)
        assert client.get("/config").status_code == 401
        assert client.post("/login", data={"username": "a", "password": "guess"}).status_code == 400
        assert client.post("/login", data={"username": "a", "password": "sesame"}).status_code == 200
        assert client.post("/gradio_api/upload", files=photo).status_code == 200
        assert Browser(client).search(textbox="red")["success"]
