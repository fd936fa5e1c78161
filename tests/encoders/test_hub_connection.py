"""Downloads from a hub that does not answer end after few requests, and say what helps."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from mim_lightning.encoders import hub_connection
from mim_lightning.encoders.hf_text import HfText
from mim_lightning.encoders.hub_connection import cache_unless_connected, why_not_downloaded
from mim_lightning.encoders.timm_image import TimmImage

open_clip = pytest.importorskip("mim_lightning.encoders.open_clip", reason="needs the extra 'clip'")


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, offline: None, tmp_path: Path) -> None:
    """Undo the offline mode of the other tests; nothing is in the cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_connection, "PAUSE", 0.0)
    monkeypatch.setattr(hub_connection, "_answered", set())
    monkeypatch.setattr(hub_connection, "_silent", {})


class SilentHub:
    """A hub behind a network that swallows everything: it takes connections, and never answers."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        try:
            while True:
                self.connections.append(self.listener.accept()[0])
        except OSError:
            return  # closed

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[SilentHub]:
    hub = SilentHub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(hub_connection, "PATIENCE", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    yield hub
    for part in (hub.listener, *hub.connections):
        part.close()


ENCODERS = {
    "clip": lambda: open_clip.OpenClipImage("ViT-B-32", "datacomp_xl_s13b_b90k"),
    "timm": lambda: TimmImage("test_vit", pretrained=True),
    "transformers": lambda: HfText("no/such-model"),
}
WAYS_OUT = {"clip": "encoder.text.pretrained=<file>", "timm": "pretrained=false", "transformers": "text.name=<folder>"}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_hub_that_does_not_answer_is_given_up(name: str, silent: SilentHub, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="cannot be downloaded") as caught:
        ENCODERS[name]()
    said = str(caught.value)
    assert f"no network: {silent.address} does not answer" in said
    assert "copy HF_HOME" in said and WAYS_OUT[name] in said
    assert len(silent.connections) == 2, "the client of the hub asks for each file, again and again"
    assert constants.HF_HUB_OFFLINE is False, "the next call asks anew"
    assert caplog.records == [], "the error is one line"


@pytest.mark.parametrize("status", [404, 302])
def test_a_hub_that_answers_is_asked_once(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no first page, or leads from there to a host that nobody reaches."""
    asked = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:9/")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        for _ in range(2):
            with cache_unless_connected("me/shoes"):
                assert constants.HF_HUB_OFFLINE is False
        server.shutdown()
    assert len(asked) == 1
    assert why_not_downloaded().startswith(f"not on {constants.ENDPOINT}")


def test_a_silent_hub_is_asked_again_after_a_while_and_as_patiently_as_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []

    class Silence:
        def head(self, url: str, timeout: float) -> None:
            waited.append(timeout)
            raise TimeoutError

    monkeypatch.setattr(hub_connection, "get_session", Silence)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 60)
    for _ in range(3):
        with cache_unless_connected("me/shoes"):
            assert constants.HF_HUB_OFFLINE is True
    assert waited == [hub_connection.PATIENCE, 60], "a model is many files"
    monkeypatch.setattr(hub_connection, "SILENCE", 0.0)
    with cache_unless_connected("me/shoes"):
        assert len(waited) == 4


def test_what_is_here_or_offline_asks_nobody(
    silent: SilentHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cache_unless_connected(tmp_path), cache_unless_connected("me/shoes", offline=True):
        assert constants.HF_HUB_OFFLINE is False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with cache_unless_connected("me/shoes"):
        assert why_not_downloaded().startswith("HF_HUB_OFFLINE is set")
    assert silent.connections == [] and constants.HF_HUB_OFFLINE is True
