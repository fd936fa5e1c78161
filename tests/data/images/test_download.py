"""Images are downloaded completely, once, and in bounded time, whatever the servers do; a kill loses none."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
import socket
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mim_lightning.data.images import download
from mim_lightning.data.images.download import Downloads, DownloadSettings
from mim_lightning.io import public_network, remote
from tests.data.images.image_server import ImageServer, image_server, served

registry: Any = importlib.import_module("fsspec.registry")  # fsspec.registry itself is a mapping


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with image_server() as running:
        yield running


def settings(folder: Path | None, **options: Any) -> DownloadSettings:
    quick = {"cache": str(folder) if folder else None, "timeout": 10, "backoff": 0.01, "num_connections": 4}
    quick |= {"private_addresses": True}  # the server of these tests is on loopback
    return DownloadSettings(**{**quick, **options})


def kept(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_every_image_is_downloaded_once_and_cached(server: ImageServer, tmp_path: Path) -> None:
    addresses = [server.address(f"/ok/{number}") for number in range(20)]
    assert Downloads(settings(tmp_path)).fetch_all([*addresses, addresses[3]]) == {}
    assert set(server.asked.values()) == {1} and len(server.asked) == 20
    assert server.agents == {"Mozilla/5.0 (compatible; mim-lightning)"}
    again = Downloads(settings(tmp_path))
    assert again.fetch_all(addresses) == {}
    assert [again.read(address) for address in addresses] == [served(number) for number in range(20)]
    assert set(server.asked.values()) == {1}
    assert len(kept(tmp_path)) == 20


def test_without_a_cache_each_reading_fetches(server: ImageServer) -> None:
    downloads, address = Downloads(settings(None)), server.address("/ok/1")
    assert downloads.fetch_all([address]) == {}
    assert [downloads.read(address), downloads.read(address)] == [served(1), served(1)]
    assert server.asked["/ok/1"] == 2


@pytest.mark.parametrize(("kind", "num_asked"), [("twice", 3), ("busy", 2), ("cut", 2), ("moved", 1)])
def test_a_retry_that_succeeds(server: ImageServer, tmp_path: Path, kind: str, num_asked: int) -> None:
    downloads, address = Downloads(settings(tmp_path, retries=2)), server.address(f"/{kind}/5")
    assert downloads.fetch_all([address]) == {}
    assert downloads.read(address) == served(5)
    assert server.asked[f"/{kind}/5"] == num_asked


@pytest.mark.parametrize(
    ("kind", "num_asked", "words"),
    [
        ("missing", 1, "the server answered 404 Not Found"),
        ("page", 1, "answered with an HTML page"),
        ("empty", 1, "the file is empty"),
        ("large", 1, "1,000,000,000 bytes, at most 9,000 are read"),
        ("endless", 1, "more than 9,000 bytes"),
        ("broken", 2, r"the server answered 500 Internal Server Error \(tried 2 times\)"),
        ("stall", 2, r"timed out \(tried 2 times\)"),
        ("drip", 2, r"timed out \(tried 2 times\)"),
    ],
)
def test_failures_of_a_server_are_reported_in_bounded_time(
    server: ImageServer, tmp_path: Path, kind: str, num_asked: int, words: str
) -> None:
    bounds = settings(tmp_path, retries=1, max_bytes=9_000, timeout=0.4 if kind in ("stall", "drip") else 10)
    downloads, address = Downloads(bounds), server.address(f"/{kind}")
    started = time.monotonic()
    ((failed, reason),) = downloads.fetch_all([address]).items()
    assert time.monotonic() - started < 15  # of 20 s that a stalling server would take at least
    assert failed == address and "\n" not in reason
    with pytest.raises(OSError, match=words):
        downloads.read(address)
    with pytest.raises(OSError, match=words):
        pickle.loads(pickle.dumps(downloads)).read(address)
    assert server.asked[f"/{kind}"] == num_asked  # not asked again in this run
    assert kept(tmp_path) == []
    Downloads(replace(bounds, retries=0)).fetch_all([address])
    assert server.asked[f"/{kind}"] == num_asked + 1  # but in the next


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:1/a.jpg", "refused"),
        ("http://[::1/a.jpg", "not a valid URL"),
        ("http://127.0.0.1:port/a.jpg", "not a valid URL"),
        ("htps://shop/a.jpg", "htps:// cannot be opened"),
        ("memory://nowhere/a.jpg", "no such file"),
    ],
)
def test_urls_that_cannot_be_read(tmp_path: Path, address: str, words: str) -> None:
    (reason,) = Downloads(settings(tmp_path, retries=0)).fetch_all([address]).values()
    assert words in reason and "\n" not in reason


def test_other_protocols_go_through_fsspec(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/shop/a.jpg", served(1))
    store.pipe("/shop/b.jpg", b"x" * 2000)
    downloads = Downloads(settings(tmp_path, max_bytes=1500))
    assert downloads.fetch_all(["memory://shop/a.jpg", "memory://shop/b.jpg"]) == {
        "memory://shop/b.jpg": "more than 1,500 bytes"
    }
    store.rm("/shop", recursive=True)
    assert downloads.read("memory://shop/a.jpg") == served(1)


def test_a_silent_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        failures = Downloads(settings(tmp_path, retries=0, timeout=0.2)).fetch_all(["s3://silent-bucket/a.jpg"])
    assert time.monotonic() - started < 30  # of 60 s and 5 tries that the client would take by itself
    assert list(failures) == ["s3://silent-bucket/a.jpg"]


def test_a_missing_library_stops_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.known_implementations, "s3", {"class": "nowhere.S3", "err": "install s3fs"})
    monkeypatch.delitem(registry._registry, "s3", raising=False)
    with pytest.raises(ValueError, match=r"^s3:// cannot be opened; install the extra: pip install 'mim-lightning\[s3"):
        Downloads(settings(tmp_path)).fetch_all(["s3://shop/a.jpg"])


def test_a_host_that_fails_repeatedly_is_given_up(
    server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_CONSECUTIVE_FAILURES", 3)
    bad = [server.address(f"/broken/{number}") for number in range(30)]
    downloads = Downloads(settings(tmp_path, retries=0, num_connections=1))
    failures = downloads.fetch_all([*bad[:2], server.address("/missing/1"), *bad[2:]])
    assert len(failures) == 31
    assert sum(reason.startswith("not tried: 127.0.0.1") for reason in failures.values()) == 25
    assert sum(server.asked.values()) == 6


def test_urls_that_need_quoting(server: ImageServer, tmp_path: Path) -> None:
    address = server.address("/ok/3") + "?name=blå tröja&size=1%20m"
    assert Downloads(settings(tmp_path)).read(address) == served(3)
    assert list(server.asked) == ["/ok/3?name=bl%C3%A5%20tr%C3%B6ja&size=1%20m"]


def test_an_unwritable_cache_is_not_a_failure_of_the_image(server: ImageServer, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    downloads = Downloads(settings(tmp_path / "cache"))
    with pytest.raises(OSError, match="cache"):
        downloads.fetch_all([server.address("/ok/1")])
    assert downloads.failures == {}


def _fetch(folder: Path, addresses: list[str]) -> None:
    Downloads(settings(folder)).fetch_all(addresses)


def test_a_killed_download_keeps_its_images(server: ImageServer, tmp_path: Path) -> None:
    server.pause = 0.02
    addresses = [server.address(f"/ok/{number}") for number in range(120)]
    process = multiprocessing.get_context("fork").Process(target=_fetch, args=(tmp_path, addresses))
    process.start()
    while server.asked.total() < 40:
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    server.pause = 0
    whole = [path for path in kept(tmp_path) if not path.name.startswith(".")]
    assert 20 < len(whole) < 120
    server.asked.clear()
    downloads = Downloads(settings(tmp_path))
    assert downloads.fetch_all(addresses) == {}
    assert server.asked.total() == 120 - len(whole)
    assert [downloads.read(address) for address in addresses] == [served(number) for number in range(120)]


def test_two_processes_use_one_cache(server: ImageServer, tmp_path: Path) -> None:
    addresses = [server.address(f"/ok/{number}") for number in range(40)]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fetch, args=(tmp_path, addresses)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0]
    server.asked.clear()
    downloads = Downloads(settings(tmp_path))
    assert [downloads.read(address) for address in addresses] == [served(number) for number in range(40)]
    assert not server.asked and len(kept(tmp_path)) == 40


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_connections", 0), ("timeout", 0), ("retries", -1), ("backoff", -1), ("max_bytes", 0), ("max_bytes", "50MB")],
)
def test_invalid_settings(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"data.source.download.{name}={value}: must be a number, at least"):
        DownloadSettings(**{name: value})


def test_an_image_inside_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.jpg", served(1))
    assert Downloads(settings(None)).read(f"zip://1.jpg::{tmp_path}/a.zip") == served(1)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "2130706433", "0x7f.1", "0.1.2.3", "10.1.2.3", "172.16.9.9", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "[::1]", "[fe80::1]", "[fd00::1]", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]"),
        *("[::127.0.0.1]", "[::ffff:0:7f00:1]", "[64:ff9b:1::7f00:1]", "[fec0::1]"),
        *("[2002:7f00:1::]", "224.0.0.1", "168.63.129.16", "[::ffff:168.63.129.16]"),
    ],
)
def test_private_addresses_are_refused_unless_allowed(server: ImageServer, host: str) -> None:
    downloads = Downloads(settings(None, private_addresses=False, retries=3, timeout=60))
    with pytest.raises(OSError, match=r"private network; data\.source\.download\.private_addresses=true allows"):
        downloads.read(f"http://{host}:{server.server_port}/ok/1")
    assert not server.asked


def test_a_redirect_to_a_private_address_is_not_followed(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_network, "is_private", lambda address: address == "127.0.0.2")
    downloads = Downloads(settings(None, private_addresses=False))
    assert downloads.read(server.address("/moved/5")) == served(5)
    with pytest.raises(OSError, match=r"127\.0\.0\.2, an address of this machine"):
        downloads.read(server.address("/elsewhere/5"))
    assert server.asked["/ok/5"] == 1


def test_a_name_is_resolved_once_and_the_checked_address_connected_to(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public when checked and private when connected to is connected to at the checked address."""
    asked = []

    def resolve(host: str, port: Any, **options: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(public_network, "is_private", lambda address: address != "127.0.0.1")
    monkeypatch.setattr(public_network, "_resolve", resolve)
    address = f"http://shop.example:{server.server_port}/ok/1"
    assert Downloads(settings(None, private_addresses=False)).read(address) == served(1)
    assert asked == ["shop.example"]


def test_a_proxy_may_be_private_its_target_may_not(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.address(""))
    public_network.http_opener.cache_clear()
    try:
        downloads = Downloads(settings(None, private_addresses=False, retries=0))
        with pytest.raises(OSError, match="private network"):
            downloads.read("http://10.0.0.1/ok/1")
        assert not server.asked
        with pytest.raises(OSError, match="closed connection"):
            downloads.read("http://shop.invalid/ok/1")
        assert server.asked["http://shop.invalid/ok/1"] == 1
    finally:
        public_network.http_opener.cache_clear()


@pytest.mark.parametrize("protocol", ["ftp", "sftp", "ssh", "smb", "webhdfs", "hdfs", "webdav", "root", "jupyter"])
@pytest.mark.parametrize("around", ["", "simplecache::", "zip://1.jpg::"])
def test_protocols_that_resolve_names_themselves_are_rejected(
    protocol: str, around: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public when checked may be private when such a client connects to it."""
    monkeypatch.setattr(remote, "file_system", lambda address: pytest.fail("it was connected to"))
    with pytest.raises(OSError, match=rf"^the hosts that {protocol}:// .*private_addresses=true"):
        Downloads(settings(None, private_addresses=False)).read(f"{around}{protocol}://shop.example/a.jpg")


def test_other_protocols_reach_no_special_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    downloads = Downloads(settings(None, private_addresses=False))
    for address, words in [
        (f"zip://1.jpg::{tmp_path}/pipe", "is a pipe, socket or device"),
        ("local:///dev/zero", "is a pipe, socket or device"),
        (f"zip://1.jpg::file:{tmp_path}/pipe", "is a pipe, socket or device"),
        ("zip://1.jpg::https://shop.example/a.zip", "private_addresses=true"),
        ("simplecache::http://127.0.0.1/a.jpg", "private_addresses=true"),
        ("zip://1.jpg::HTTP://shop.example/a.zip", "private_addresses=true"),
        ("reference::/tmp/names.json", "private_addresses=true"),  # a file of addresses
        ("htps://shop.example/a.jpg", "private_addresses=true"),
    ]:
        with pytest.raises(OSError, match=words):
            downloads.read(address)
