"""What a service takes from strangers, and the errors that say so with the right status.

The door builds `Limits` from conf/serve.yaml; the gate, the routes and the page enforce them.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields

from mim_lightning.data.images.codec import EncodedImage
from mim_lightning.data.images.limits import ImageError, ImageTooLargeError, PictureLimits


class RefusedError(Exception):
    """A request that is not answered: an HTTP status, and one line that says what would be right.

    The status is 4xx, or 503 where the service has too much to do.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after


@dataclass(frozen=True)
class Limits:
    """Upper limits of a request."""

    upload_bytes: int = 12_000_000  # of a whole request
    pixels: int = 40_000_000  # of one picture
    side: int = 20_000  # pixels, of its longer side
    aspect: int = 100  # of its sides
    scans: int = 32  # of a progressive JPEG
    pixels_in_work: int = 80_000_000  # of the pictures of all requests that are decoded at once
    num_images: int = 4
    text_length: int = 500  # characters of each text
    num_hits: int = 100
    requests_per_minute: int = 600  # of one client address, held in memory only; 0: no limit
    connections: int = 512  # of all clients
    connections_per_client: int = 64  # and requests at work
    header_seconds: int = 10  # until a request's headers are whole
    body_seconds: int = 30  # until its body is, and a second more for each 16 kB that came
    send_seconds: int = 60  # that a client may take nothing of an answer
    idle_seconds: int = 30  # between two requests of a connection

    def __post_init__(self) -> None:
        for entry in fields(self):
            least = 0 if entry.name == "requests_per_minute" else 1
            if getattr(self, entry.name) < least:
                raise ValueError(f"limits.{entry.name}={getattr(self, entry.name)}: must be at least {least}")

    def check_images(self, images: Sequence[bytes]) -> tuple[EncodedImage, ...]:
        """Parse the headers of a request's images, once: whoever decodes them takes what this returns.

        Raises:
            RefusedError: too many, too large, or not an image.
        """
        if len(images) > self.num_images:
            raise RefusedError(413, f"image: {len(images)} pictures, at most {self.num_images} are taken")
        limits = PictureLimits(self.pixels, self.side, self.aspect, self.scans)
        checked = []
        for number, data in enumerate(images, start=1):
            try:
                checked.append(EncodedImage.of(data, limits))
            except ImageError as error:
                raise refused_image(number, str(error), error) from error
        return tuple(checked)

    def check_text(self, name: str, text: str | None) -> None:
        if text is not None and len(text) > self.text_length:
            raise RefusedError(413, f"{name}: {len(text)} characters, at most {self.text_length} are taken")

    def check_num_hits(self, num_hits: int) -> None:
        if not 1 <= num_hits <= self.num_hits:
            raise RefusedError(422, f"k: {num_hits}, must be 1 to {self.num_hits}")


def refused_image(number: int, reason: str, error: BaseException | None) -> RefusedError:
    """Return the refusal of a request's picture, counted from 1: 413 if it is too large, 415 if it cannot be read."""
    if isinstance(error, ImageTooLargeError):
        return RefusedError(413, f"image {number}: {reason}; give a smaller one")
    return RefusedError(415, f"image {number}: {reason}; give a JPEG, PNG or WebP")


class RateLimit:
    """So many requests a minute of each client, in short bursts of up to as many; forgets who is quiet.

    Source: the token bucket (Turner 1986).
    """

    MAX_CLIENTS = 100_000  # the quietest are forgotten first

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted
        self._turn = threading.Lock()

    def take(self, client: str, now: float | None = None) -> None:
        """Count one request; `now` is a clock's seconds.

        Raises:
            RefusedError: the client has none left.
        """
        if not self.per_minute:
            return
        now = time.monotonic() if now is None else now
        with self._turn:
            tokens, then = self._buckets.pop(client, (float(self.per_minute), now))
            tokens = min(float(self.per_minute), tokens + (now - then) * self.per_minute / 60)
            is_over = tokens < 1
            self._buckets[client] = (tokens if is_over else tokens - 1, now)
            if len(self._buckets) > self.MAX_CLIENTS:
                self._buckets.popitem(last=False)
        if is_over:
            wait = (1 - tokens) * 60 / self.per_minute
            raise RefusedError(429, f"more than {self.per_minute} requests a minute; wait {wait:.1f} s", wait)
