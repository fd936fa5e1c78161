"""One retry policy: what is tried again, how long it waits in between, and when it gives up."""

from __future__ import annotations

import http.client
import threading
import urllib.error
from collections.abc import Callable
from email.message import Message

import pytest

from mim_lightning.io.retry import NotFoundError, RemoteError, RetriesExhaustedError, RetryPolicy

QUICK = RetryPolicy(timeout=1, retries=2, backoff=0.001)


def failing(*errors: Exception) -> Callable[[int], str]:
    """Return an attempt that raises these errors, one a try, then returns its number."""

    def attempt(number: int) -> str:
        if number < len(errors):
            raise errors[number]
        return f"try {number}"

    return attempt


def test_errors_that_may_pass_are_retried() -> None:
    assert QUICK.run(failing()) == "try 0"
    assert QUICK.run(failing(ConnectionResetError(), http.client.IncompleteRead(b""))) == "try 2"
    with pytest.raises(RetriesExhaustedError, match=r"^timed out \(tried 3 times\)$"):
        QUICK.run(failing(OSError("a"), OSError("b"), TimeoutError()))
    with pytest.raises(RetriesExhaustedError, match=r"^a b$"):
        RetryPolicy(retries=0).run(failing(OSError("a\n b")))


@pytest.mark.parametrize("error", [RemoteError("no"), NotFoundError("no such file"), ValueError("a bug")])
def test_other_errors_are_not_retried(error: Exception) -> None:
    with pytest.raises(type(error), match=f"^{error}$"):
        QUICK.run(failing(error))


def test_a_stop_ends_the_retries() -> None:
    stop = threading.Event()

    def attempt(number: int) -> str:
        assert number == 0
        stop.set()
        raise OSError("down")

    with pytest.raises(RetriesExhaustedError, match=r"^down$"):
        RetryPolicy(backoff=60).run(attempt, stop)


def test_pauses_double_up_to_a_limit_or_are_what_the_server_asks_for() -> None:
    def pause(num_tries: int, wanted: str | None = None) -> float:
        headers = Message()
        if wanted:
            headers["Retry-After"] = wanted
        error = urllib.error.HTTPError("http://shop", 503, "busy", headers, None)
        return RetryPolicy(timeout=20, backoff=0.5).pause(num_tries, error)

    assert [pause(1, "7"), pause(2, "7"), pause(1, "500")] == [7, 7, 20]
    for num_tries, middle in [(1, 0.5), (2, 1), (3, 2), (9, 10)]:
        pauses = [pause(num_tries, wanted) for wanted in (None, "Wed, 21 Oct 2026 07:28:00 GMT") for _ in range(50)]
        assert middle / 2 <= min(pauses) < middle < max(pauses) <= middle * 1.5


def test_max_seconds_bounds_timeouts_and_pauses() -> None:
    policy = RetryPolicy(timeout=2, retries=2, backoff=0.5, max_backoff=0.6)
    assert policy.max_seconds == pytest.approx(3 * 2 + 1.5 * (0.5 + 0.6))
