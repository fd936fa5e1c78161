"""The service killed under load: what it has confirmed is in the event log, once, and the index is as it was."""

from __future__ import annotations

import http.client
import json
import random
import shutil
import sqlite3
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.outcomes import points, record_outcome
from tests.campaign.processes import EntryPoint, wait_until
from tests.campaign.search import Shop, content_of

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

SALT = {"MIM_USER_SALT": "s" * 32}


class Clients:
    """Threads that search and click until the service is gone; they note what it has confirmed.

    Args:
        are_patient: go on where the event log fails: a response has no impression then, and a click is refused.
    """

    def __init__(self, address: str, num_threads: int = 3, are_patient: bool = False) -> None:
        self.address, self.is_stopped, self.are_patient = address, False, are_patient
        self.num_unrecorded = 0
        self.impressions: list[str] = []
        self.clicks: list[tuple[str, str]] = []
        self.failures: list[int] = []  # codes of answers that are no answer
        self.cut = 0  # answers that broke off
        self._threads = [
            threading.Thread(target=self._shop, args=(number,), daemon=True) for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def _shop(self, number: int) -> None:
        while not self.is_stopped:
            try:
                found = self._post("/search", f"like=003&user=user-{number}".encode())
                if self.are_patient and found.get("impression_id") is None:
                    self.num_unrecorded += 1
                    continue
                self.impressions.append(found["impression_id"].replace("-", ""))
                clicked = found["impression_id"], found["hits"][0]["product_id"]
                body = json.dumps(dict(zip(("impression_id", "product_id"), clicked, strict=True))).encode()
                assert self._post("/click", body, "application/json") == {"recorded": True}
                self.clicks.append((clicked[0].replace("-", ""), clicked[1]))
            except urllib.error.HTTPError as error:
                if self.are_patient and error.code == 503:
                    self.num_unrecorded += 1
                    continue
                self.failures.append(error.code)
                return
            except (OSError, ValueError, http.client.HTTPException) as error:
                # cut amid an answer, unless it was not taken: refused, or closed before it was read
                self.cut += not isinstance(
                    getattr(error, "reason", error), ConnectionRefusedError | ConnectionResetError
                )
                return

    def _post(self, path: str, body: bytes, kind: str = "application/x-www-form-urlencoded") -> dict[str, Any]:
        request = urllib.request.Request(f"{self.address}{path}", body, {"content-type": kind})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.loads(answer.read()))

    def join(self) -> None:
        self.is_stopped = True
        for thread in self._threads:
            thread.join()


def serve(
    index: Path, folder: Path, log_folder: Path | None = None, are_patient: bool = False, **fault: Any
) -> tuple[EntryPoint, Clients]:
    words = [f"index={index}", "port=0", "ui=false", "device=cpu", "limits.requests_per_minute=0"]
    words += ["experiment_name=e", f"event_log={log_folder or folder}/events.db"]
    started = EntryPoint("serve", words, folder / "scratch", environment=SALT, **fault)
    wait_until(lambda: "http" in started.stdout or started.process.poll() is not None)
    assert started.process.poll() is None, started.stderr
    return started, Clients(started.stdout.split()[0], are_patient=are_patient)


@pytest.mark.parametrize("rng", points("serve", 5, 0))
def test_service(rng: random.Random, search_shop: Shop, tmp_path: Path) -> None:
    index = shutil.copytree(search_shop.index, tmp_path / "index")
    confirmed: list[Clients] = []
    for number in rng.sample(range(2, 60), 2):
        with record_outcome("kill", "serve, under load", f"kill -9 after {number} clicks") as found:
            started, clients = serve(index, tmp_path)
            confirmed.append(clients)
            wait_until(lambda clients=clients, number=number: len(clients.clicks) >= number, 60)  # type: ignore[misc]
            started.kill()
            clients.join()
            assert not clients.failures, f"answers {clients.failures}"
            assert_log_is_whole(tmp_path / "events.db", confirmed)
            assert content_of(index) == content_of(search_shop.index), "the index has changed"
            found.outcome = "every confirmed impression and click in the log, once; index as it was"


def assert_log_is_whole(path: Path, confirmed: list[Clients], is_all: bool = False) -> None:
    """Check that an event log is sound and has what was confirmed; `is_all`: and nothing else."""
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        impressions = [row[0] for row in database.execute("SELECT impression_id FROM impressions")]
        clicks = list(database.execute("SELECT impression_id, product_id FROM clicks"))
        orphans = database.execute(
            "SELECT count(*) FROM clicks WHERE impression_id NOT IN (SELECT impression_id FROM impressions)"
        )
        assert orphans.fetchone() == (0,), "clicks without their impression"
    assert len(set(impressions)) == len(impressions) and len(set(clicks)) == len(clicks), "recorded twice"
    assert {one for clients in confirmed for one in clients.impressions} <= set(impressions), "an impression is lost"
    assert {one for clients in confirmed for one in clients.clicks} <= set(clicks), "a click is lost"
    if is_all:
        assert len(impressions) == sum(len(clients.impressions) for clients in confirmed), "an answer is missing"
        assert len(clicks) == sum(len(clients.clicks) for clients in confirmed), "an answer to a click is missing"
