"""Limits of an untrusted image - file size, pixels, sides, scans - and the errors of images.

The codec checks `LIMITS` before it decodes; a service may check tighter ones first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mim_lightning.io.paths import irregular_kind

MAX_FILE_BYTES = 256 * 2**20  # of an encoded image; larger files are not read


class ImageError(ValueError):
    """An image cannot be used."""


class UnreadableImageError(ImageError):
    """Not an image, a damaged one, or one in a format that is not read."""


class TruncatedImageError(UnreadableImageError):
    """The file ends before the image does."""


class ImageTooLargeError(ImageError):
    """The image exceeds a limit; nothing was decoded."""


@dataclass(frozen=True)
class ImageLimits:
    """Upper limits of one image: a few bytes can decode to gigabytes, or to minutes of work.

    Attributes:
        pixels: of the whole image.
        side: pixels of the longer side.
        aspect: ratio of the longer to the shorter side.
        scans: of a progressive JPEG; encoders write about ten.
    """

    pixels: int = 64_000_000
    side: int = 65_535
    aspect: int = 1_000
    scans: int = 100

    def check(self, height: int, width: int, num_scans: int = 1) -> None:
        """Raise ImageTooLargeError if an image exceeds a limit."""
        size, longer, shorter = f"{width} x {height} pixels", max(height, width), min(height, width)
        if height * width > self.pixels:
            raise ImageTooLargeError(f"{size}, at most {self.pixels:,} are decoded")
        if longer > self.side:
            raise ImageTooLargeError(f"{size}, at most {self.side:,} a side are decoded")
        if longer > self.aspect * max(shorter, 1):
            raise ImageTooLargeError(f"{size}, one side is more than {self.aspect:,} times the other")
        if num_scans > self.scans:
            raise ImageTooLargeError(f"{num_scans} scans of a progressive JPEG or more, at most {self.scans} are read")


LIMITS = ImageLimits()


def read_image_file(path: str | Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the content of an image file; errors do not repeat the path.

    Paths come from untrusted tables and requests: reading a pipe or a device would never end.

    Raises:
        FileNotFoundError: no such file.
        UnreadableImageError: not a regular file.
        ImageTooLargeError: more than `max_bytes`.
        OSError: it cannot be read.
    """
    facts = os.stat(path)
    kind = irregular_kind(facts.st_mode)
    if kind:
        raise UnreadableImageError(f"{kind}, not an image file")
    if facts.st_size > max_bytes:
        raise ImageTooLargeError(f"{facts.st_size:,} bytes, at most {max_bytes:,} are read")
    with open(path, "rb", opener=_open_at_once) as file:
        data = file.read(max_bytes + 1)
    if data is None:
        raise UnreadableImageError("a file that waits for its content, not an image file")
    if len(data) > max_bytes:  # some files of the system report no size
        raise ImageTooLargeError(f"more than {max_bytes:,} bytes, no more are read")
    return data


def _open_at_once(path: str, flags: int) -> int:
    """Open a file that is never waited for: some files of the system look regular, and block their readers."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
