"""Photos that browsers leave with the page, in a folder of this process alone.

An upload is named by a path that cannot be guessed, so that only who left a photo can search with it or look at it; a
path that came from anywhere else is refused before the file is opened. What is not searched with is removed soon.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import stat
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mim_lightning.search.service.limits import RefusedError

KEPT_SECONDS = 600  # after the upload, or the last search with it
MAX_PER_CLIENT = 20  # the oldest is removed for a newer one
MAX_BYTES = 1_000_000_000  # of all clients: likewise
SUFFIXES = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif"}


@dataclass
class _Upload:
    client: str
    num_bytes: int
    used: float


class Uploads:
    """The uploads of one page; `folder` is the one that Gradio serves files from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._known: OrderedDict[Path, _Upload] = OrderedDict()  # the oldest first
        self._turn = threading.Lock()

    def add(self, data: bytes, client: str) -> Path:
        """Write a photo and return its path; older ones of the client, and of all, make room for it.

        Raises:
            RefusedError: the disk is full, or cannot be written to.
        """
        suffix = next((suffix for start, suffix in SUFFIXES.items() if data.startswith(start)), "bin")
        path = self.folder / secrets.token_hex(16) / f"photo.{suffix}"
        try:
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        except OSError as error:
            shutil.rmtree(path.parent, ignore_errors=True)  # half a photo, which nobody would remove later
            raise RefusedError(503, f"photos cannot be kept now ({error.strerror}); try again", 5) from error
        with self._turn:
            self._known[path] = _Upload(client, len(data), time.monotonic())
            own = [known for known, upload in self._known.items() if upload.client == client]
            for known in own[:-MAX_PER_CLIENT]:
                self._remove(known)
            while sum(upload.num_bytes for upload in self._known.values()) > MAX_BYTES and len(self._known) > 1:
                self._remove(next(iter(self._known)))
        return path

    def find(self, path: object) -> Path:
        """Return the file that a client names, if it is an upload; it stays for a while again.

        Raises:
            RefusedError: it is none, or was removed.
        """
        known = Path(path) if isinstance(path, str) and "\x00" not in path else None
        with self._turn:
            upload = self._known.get(known) if known else None
            if known is None or upload is None:
                raise RefusedError(403, "this photo was not uploaded here, or some time ago; upload it again")
            upload.used = time.monotonic()
        return known

    def shown(self, path: str) -> Path:
        """Return the file that a browser asks for by its path: an upload, or a picture among the hits.

        Raises:
            RefusedError: it is neither.
        """
        with suppress(OSError, ValueError):  # too long a name; a NUL
            # no link and no "..": names what it says, in the folder where the page alone writes
            found = Path(path)
            is_here = os.path.realpath(found) == path and found.is_relative_to(self.folder)
            if is_here and stat.S_ISREG(found.lstat().st_mode):
                return found
        raise RefusedError(404, "there is no such picture")

    async def sweep(self, every: float = 30.0) -> None:
        """Remove what was not used for a while, as long as this runs."""
        while True:
            await asyncio.sleep(every)
            self.remove_older_than(KEPT_SECONDS)

    def remove_older_than(self, seconds: float) -> None:
        now = time.monotonic()
        with self._turn:
            for path in [path for path, upload in self._known.items() if now - upload.used >= seconds]:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        del self._known[path]
        path.unlink(missing_ok=True)
        with suppress(OSError):  # removed by hand, or holds something else
            path.parent.rmdir()
