"""Reading an image file: regular files of bounded size only.

Paths come from tables and requests that are not trusted: reading a pipe or a device would never end.
"""

from __future__ import annotations

import os
from pathlib import Path

from mim_lightning.data.images.limits import ImageTooLargeError, UnreadableImageError
from mim_lightning.io.paths import irregular_kind

MAX_BYTES = 256 * 2**20  # of an encoded picture; larger files are not even read


def read_file(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file; errors do not repeat the path.

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
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:  # some files of the system have no size
        raise ImageTooLargeError(f"more than {max_bytes:,} bytes, no more are read")
    return data
