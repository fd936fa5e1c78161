"""The nginx configuration of the docs in front of the service: TLS, addresses, limits, and a new index."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("gradio") is None:  # importing takes seconds, in every process that collects
    pytest.skip("the extra `serve` is not installed", allow_module_level=True)
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

import uvicorn  # noqa: E402

from mim_lightning.search.service.app import make_app  # noqa: E402
from mim_lightning.search.service.connections import Proxies  # noqa: E402
from mim_lightning.search.service.server import uvicorn_settings  # noqa: E402
from tests.search.service.color_shop import color_service, square  # noqa: E402
from tests.search.service.test_connections import running  # noqa: E402
from tests.search.service.test_ui_requests import META, Browser  # noqa: E402

NGINX, OPENSSL = shutil.which("nginx"), shutil.which("openssl")
CONF = Path(__file__).parents[3] / "docs" / "deployment" / "nginx.conf"
FRAME = """
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u;
    scgi_temp_path {folder}/s;
    include {folder}/site.conf;
}}
"""

pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
    pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed"),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


class Proxy:
    """nginx with the configuration of the docs, on other ports and with another certificate."""

    def __init__(self, folder: Path, backend: int) -> None:
        self.folder, self.plain, self.secure = folder, free_port(), free_port()
        subject = ["-subj", "/CN=search.example.org", "-days", "1"]
        key = ["-newkey", "rsa:2048", "-nodes", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"]
        subprocess.run([str(OPENSSL), "req", "-x509", *key, *subject], check=True, capture_output=True)
        user = "user root;" if os.getuid() == 0 else ""  # who reads the test's folder
        (folder / "nginx.conf").write_text(FRAME.format(folder=folder, user=user))
        self.command = [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf")]
        self.write(backend)

    def write(self, backend: int) -> None:
        text = CONF.read_text()
        for old, new in (
            ("listen 80;", f"listen 127.0.0.1:{self.plain};"),
            ("listen 443 ssl;", f"listen 127.0.0.1:{self.secure} ssl;"),
            ("server 127.0.0.1:8000;", f"server 127.0.0.1:{backend};"),
            ("/etc/letsencrypt/live/search.example.org/fullchain.pem", f"{self.folder}/cert.pem"),
            ("/etc/letsencrypt/live/search.example.org/privkey.pem", f"{self.folder}/key.pem"),
        ):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (self.folder / "site.conf").write_text(text)

    @contextmanager
    def running(self) -> Iterator[None]:
        process = subprocess.Popen([*self.command, "-g", "daemon off;"])
        try:
            for _ in range(300):
                with socket.socket() as tried:
                    if tried.connect_ex(("127.0.0.1", self.secure)) == 0:
                        break
                assert process.poll() is None, (self.folder / "error.log").read_text()
                threading.Event().wait(0.1)
            yield
        finally:
            process.terminate()
            process.wait(30)

    def move_to(self, backend: int) -> None:
        self.write(backend)
        subprocess.run([*self.command, "-s", "reload"], check=True, capture_output=True)

    def client(self, address: str = "127.0.0.1") -> Any:
        url = f"https://127.0.0.1:{self.secure}"
        transport = httpx.HTTPTransport(verify=False, local_address=address)  # a certificate of the test
        return httpx.Client(base_url=url, transport=transport, headers={"host": "search.example.org"}, timeout=60)


@contextmanager
def service(folder: Path, arm: str, **limits: int) -> Iterator[int]:
    folder.mkdir()
    service = color_service(folder, (arm,), **limits)
    app = make_app(service, has_ui=True)
    settings = uvicorn_settings(service.limits, Proxies("127.0.0.1"))
    with running(uvicorn.Server(uvicorn.Config(app, **settings))) as port:
        yield port


def test_the_configuration_serves_and_rolls_to_a_new_index(tmp_path: Path) -> None:
    with service(tmp_path / "old", "old", requests_per_minute=40) as old:
        proxy = Proxy(tmp_path, old)
        with proxy.running(), proxy.client() as client:
            assert client.get("/health").json()["status"] == "ok"
            plain = httpx.get(f"http://127.0.0.1:{proxy.plain}/docs?a=b", headers={"host": "search.example.org"})
            assert (plain.status_code, plain.headers["location"]) == (301, "https://search.example.org/docs?a=b")
            answer = client.post("/search", files={"image": ("q.jpg", square("blue"))}, data={"k": "1"})
            assert answer.json()["hits"][0]["product_id"] == "blue-1"
            assert "max-age" in answer.headers["strict-transport-security"]
            assert client.get("/metrics").status_code == 403  # for Prometheus on this machine alone
            large = client.post("/search", files={"image": ("q.jpg", b"x" * 13_000_000)})
            assert large.status_code == 413 and large.json() == {"error": "the request is too large"}
            check_page(client)
            check_addresses(proxy)
            with service(tmp_path / "new", "new", requests_per_minute=0) as new:
                check_rolling(proxy, new)
            away = client.get("/health")
            assert away.status_code == 503 and away.json() == {"error": "the service is away; try again soon"}


def check_page(client: Any) -> None:
    config = client.get("/config").json()
    assert config["root"].startswith("https://search.example.org")
    browser = Browser(client)
    path = browser.upload(square("green"))
    done = browser.search(image={"path": path, **META})
    assert done["success"] and "A green square" in done["output"]["data"][1][0]["caption"]
    shown = done["output"]["data"][1][0]["image"]["url"]
    assert re.match(r"https://search\.example\.org/gradio_api/file=", shown)
    assert client.get(f"/gradio_api/file={path}").content == square("green")


def check_addresses(proxy: Proxy) -> None:
    """Limits count the address that nginx saw, whatever the client's headers claim."""
    with proxy.client("127.0.0.2") as client, proxy.client("127.0.0.3") as other:
        statuses = [
            client.post("/search", data={"text": "red"}, headers={"x-forwarded-for": f"10.0.0.{number}"}).status_code
            for number in range(45)
        ]
        assert set(statuses) == {200, 429} and statuses.index(429) >= 40
        assert other.post("/search", data={"text": "red"}).status_code == 200


def check_rolling(proxy: Proxy, new: int) -> None:
    """Searches continue while nginx switches to another service."""
    arms: list[str] = []
    with proxy.client("127.0.0.4") as client:
        for number in range(40):
            answer = client.post("/search", data={"text": "red"}, headers={"connection": "close"})
            assert answer.status_code == 200, answer.text
            arms.append(answer.json()["arm"])
            if number == 3:
                proxy.move_to(new)
            threading.Event().wait(0.05)
    assert arms[0] == "old" and arms[-1] == "new" and arms == sorted(arms, reverse=True)
