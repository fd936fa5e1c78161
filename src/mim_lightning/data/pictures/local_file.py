"""Pictures in files of this machine: regular files of bounded size, and nothing that would not end.

A path comes in, bytes go out, or one line. Paths stand in tables and requests that others wrote: a pipe would be
waited for, a device read for ever.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mim_lightning.data.pictures.limits import ImageTooLargeError, UnreadableImageError

MAX_BYTES = 256 * 2**20  # of an encoded picture; larger files are not even read


def read_file(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file; errors do not repeat the path.

    Raises:
        FileNotFoundError: no such file.
        UnreadableImageError: something else than a file stands there.
        ImageTooLargeError: more than `max_bytes`.
        OSError: it cannot be read.
    """
    facts = os.stat(path)
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "no regular file"
        raise UnreadableImageError(f"{kind}, where a picture should be")
    if facts.st_size > max_bytes:
        raise ImageTooLargeError(f"{facts.st_size:,} bytes, at most {max_bytes:,} are read")
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:  # some files of the system have no size
        raise ImageTooLargeError(f"more than {max_bytes:,} bytes, no more are read")
    return data
