"""What a client may send to the service, and the error that refuses a request with the right HTTP status."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

from starlette.responses import JSONResponse

from mim_lightning.data.images.codec import EncodedImage
from mim_lightning.data.images.limits import ImageError, ImageLimits, ImageTooLargeError
from mim_lightning.display.text import plain

MAX_MESSAGE = 500  # characters of an error, which quotes what a client wrote
MAX_WAITING = 16  # requests that wait for pixels: each holds a thread, and text-only searches need one too
MAX_WAIT_SECONDS = 20.0  # of one of them


class RefusedError(Exception):
    """A request that is refused: an HTTP status (4xx, or 503 under overload) and one line that says what is wrong."""

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after

    def response(self) -> JSONResponse:
        headers = {"retry-after": str(math.ceil(self.retry_after))} if self.retry_after is not None else None
        return error_response(self.status, self.message, headers)


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return {"error": message} as one line that every client can decode."""
    return JSONResponse({"error": plain(message, MAX_MESSAGE)}, status, headers)


@dataclass(frozen=True)
class Limits:
    """Upper limits of a request and its connection; the section `limits` of conf/serve.yaml."""

    upload_bytes: int = 12_000_000  # of a whole request
    pixels: int = 40_000_000  # of one image
    side: int = 20_000  # pixels of its longer side
    aspect: int = 100  # ratio of its sides
    scans: int = 32  # of a progressive JPEG
    pixels_in_work: int = 80_000_000  # decoded at once, over all requests
    num_images: int = 4
    text_length: int = 500  # characters of each text
    num_hits: int = 100
    requests_per_minute: int = 600  # of one client address, kept in memory only; 0: no limit
    connections: int = 512  # of all clients
    connections_per_client: int = 64  # and concurrent requests
    header_seconds: int = 10  # to receive the headers of a request
    body_seconds: int = 30  # to receive its body, plus a second for each 16 kB received
    send_seconds: int = 60  # that a client may stop reading a response
    idle_seconds: int = 30  # between two requests of a connection

    def __post_init__(self) -> None:
        for entry in fields(self):
            least = 0 if entry.name == "requests_per_minute" else 1
            if getattr(self, entry.name) < least:
                raise ValueError(f"limits.{entry.name}={getattr(self, entry.name)}: must be at least {least}")

    def check_images(self, images: Sequence[bytes]) -> tuple[EncodedImage, ...]:
        """Parse the header of each image of a request, and return them for decoding.

        Raises:
            RefusedError: too many, too large, or not an image.
        """
        if len(images) > self.num_images:
            raise RefusedError(413, f"image: {len(images)} images, at most {self.num_images} are accepted")
        limits = ImageLimits(self.pixels, self.side, self.aspect, self.scans)
        checked = []
        for number, data in enumerate(images, start=1):
            try:
                checked.append(EncodedImage.of(data, limits))
            except ImageError as error:
                raise refused_image(number, str(error), error) from error
        return tuple(checked)

    def check_text(self, name: str, text: str | None) -> None:
        if text is not None and "\x00" in text:
            raise RefusedError(422, f"{name}: contains a NUL character")
        if text is not None and len(text) > self.text_length:
            raise RefusedError(413, f"{name}: {len(text)} characters, at most {self.text_length} are accepted")

    def check_num_hits(self, num_hits: int) -> None:
        if not 1 <= num_hits <= self.num_hits:
            raise RefusedError(422, f"k: {num_hits}, must be 1 to {self.num_hits}")


def refused_image(number: int, reason: str, error: BaseException | None) -> RefusedError:
    """Return the refusal of a request's image, counted from 1: 413 if it is too large, 415 if it is unreadable."""
    if isinstance(error, ImageTooLargeError):
        return RefusedError(413, f"image {number}: {reason}; give a smaller one")
    return RefusedError(415, f"image {number}: {reason}; give a JPEG, PNG or WebP")


class RateLimit:
    """A number of requests a minute for each client, in bursts of up to as many.

    Source: the token bucket (Turner 1986).
    """

    MAX_CLIENTS = 100_000  # those with the oldest request are dropped first

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted
        self._lock = threading.Lock()

    def take(self, client: str, now: float | None = None) -> None:
        """Count one request at `now`, in seconds of a clock.

        Raises:
            RefusedError: the client has no request left.
        """
        if not self.per_minute:
            return
        now = time.monotonic() if now is None else now
        with self._lock:
            tokens, then = self._buckets.pop(client, (float(self.per_minute), now))
            tokens = min(float(self.per_minute), tokens + (now - then) * self.per_minute / 60)
            is_over = tokens < 1
            self._buckets[client] = (tokens if is_over else tokens - 1, now)
            if len(self._buckets) > self.MAX_CLIENTS:
                self._buckets.popitem(last=False)
        if is_over:
            wait = (1 - tokens) * 60 / self.per_minute
            raise RefusedError(429, f"more than {self.per_minute} requests a minute; wait {wait:.1f} s", wait)


class PixelBudget:
    """Bounds the pixels that all requests together have decoded at once, first come first served.

    Args:
        num_pixels: the bound; an image that has more by itself waits until it is the only one.
        refusal: what a request is told that would wait too long.
    """

    def __init__(
        self, num_pixels: int, refusal: str = "too many large images at once; try again, or send smaller ones"
    ) -> None:
        self.num_pixels, self.refusal = num_pixels, refusal
        self._reserved = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, num_pixels: int) -> Iterator[None]:
        """Reserve pixels for the body of the `with`, after waiting for them.

        Raises:
            RefusedError: too many requests wait already, or the wait timed out.
        """
        num_pixels = min(num_pixels, self.num_pixels)
        self._take(num_pixels)
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= num_pixels
                self._changed.notify_all()

    def _take(self, num_pixels: int) -> None:
        ticket, is_free = object(), False
        with self._changed:
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(ticket)
                is_free = self._changed.wait_for(
                    lambda: self._waiting[0] is ticket and self._reserved + num_pixels <= self.num_pixels,
                    MAX_WAIT_SECONDS,
                )
                self._waiting.remove(ticket)
                self._reserved += num_pixels if is_free else 0
                self._changed.notify_all()
        if not is_free:
            raise RefusedError(503, self.refusal, retry_after=5)
