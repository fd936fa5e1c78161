"""When and how often a remote read is tried again: one retry policy, and the errors it tells apart."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

MAX_REASON = 200  # characters of a store's message

T = TypeVar("T")


class RemoteError(OSError):
    """A remote file cannot be read, and another try would end the same way."""


class NotFoundError(RemoteError):
    """There is no such file."""


class RangeError(RemoteError):
    """A store did not send the requested part of a file, but more or less."""


class PrivateHostError(RemoteError):
    """A URL leads, or may lead, to a host that the public does not reach."""


class RetriesExhaustedError(RemoteError):
    """Every try failed; a later one may succeed."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long and how often a remote read is tried.

    Args:
        timeout: seconds after which a try is given up: in all (`read_url`), or without a byte (`download`).
        retries: tries after the first.
        backoff: seconds before the second try, doubled for each further one.
        max_backoff: the longest pause, in seconds.
    """

    timeout: float = 60.0
    retries: int = 3
    backoff: float = 0.5
    max_backoff: float = 10.0

    @property
    def max_seconds(self) -> float:
        """The longest time until a store that does not answer is given up."""
        pauses = (1.5 * self._backoff(num_tries) for num_tries in range(1, self.retries + 1))
        return (self.retries + 1) * self.timeout + sum(pauses)

    def run(self, attempt: Callable[[int], T], stop: threading.Event | None = None) -> T:
        """Call `attempt` with 0, 1, 2 ... until it returns.

        Args:
            attempt: raises `RemoteError` if another try would fail the same way, another OSError or an HTTPException
                if it may succeed.
            stop: ends the pauses between tries when it is set.

        Raises:
            RemoteError: raised by `attempt`.
            RetriesExhaustedError: every try failed; says why the last one did.
        """
        stop = stop or threading.Event()
        reason, num_tries = "", 0
        while num_tries <= self.retries and not stop.is_set():
            try:
                return attempt(num_tries)
            except RemoteError:
                raise
            except (OSError, http.client.HTTPException) as error:
                reason, num_tries = explain_error(error), num_tries + 1
                if num_tries <= self.retries:
                    stop.wait(self.pause(num_tries, error))
        raise RetriesExhaustedError(f"{reason} (tried {num_tries} times)" if num_tries > 1 else reason)

    def pause(self, num_tries: int, error: Exception | None = None) -> float:
        """Return the seconds until the next try: the server's `Retry-After`, or a random time around the backoff."""
        wanted = error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) else ""
        if wanted.isdecimal():
            return min(float(wanted), self.timeout)
        # random, or all connections would return at the same moment
        return self._backoff(num_tries) * random.uniform(0.5, 1.5)

    def _backoff(self, num_tries: int) -> float:
        return min(self.backoff * 2 ** (num_tries - 1), self.max_backoff)


def explain_error(error: BaseException) -> str:
    """Return an error of the network in one line."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}".strip()
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return "timed out"
    if isinstance(inner, socket.gaierror):
        return f"no such host ({inner.strerror})"
    return (" ".join(str(inner).split()) or type(inner).__name__)[:MAX_REASON]
