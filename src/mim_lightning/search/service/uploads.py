"""Images that browsers upload to the user interface, in a folder that only this process writes.

The path of an upload cannot be guessed, so that only the client that uploaded an image can search with it or see it.
Any other path is refused before the file is opened. Uploads that are not used are removed soon.
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

from mim_lightning.search.service.request_limits import RefusedError

KEPT_SECONDS = 600  # since the upload, or the last search with it
MAX_PER_CLIENT = 20  # of more, the oldest are removed
MAX_BYTES = 1_000_000_000  # of all clients: likewise
SUFFIXES = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif"}


@dataclass
class _Upload:
    client: str
    num_bytes: int
    used: float


class Uploads:
    """The uploads of one user interface; Gradio serves files from `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._known: OrderedDict[Path, _Upload] = OrderedDict()  # oldest first
        self._lock = threading.Lock()

    def add(self, data: bytes, client: str) -> Path:
        """Write an image and return its path; older uploads are removed where there are too many.

        Raises:
            RefusedError: the disk is full, or not writable.
        """
        suffix = next((suffix for start, suffix in SUFFIXES.items() if data.startswith(start)), "bin")
        path = self.folder / secrets.token_hex(16) / f"image.{suffix}"
        try:
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        except OSError as error:
            shutil.rmtree(path.parent, ignore_errors=True)  # a partial file would never be removed
            raise RefusedError(503, f"uploads cannot be stored now ({error.strerror}); try again", 5) from error
        with self._lock:
            self._known[path] = _Upload(client, len(data), time.monotonic())
            own = [known for known, upload in self._known.items() if upload.client == client]
            for known in own[:-MAX_PER_CLIENT]:
                self._remove(known)
            while sum(upload.num_bytes for upload in self._known.values()) > MAX_BYTES and len(self._known) > 1:
                self._remove(next(iter(self._known)))
        return path

    def find(self, path: object) -> Path:
        """Return the file of an upload that a client names, and keep it for a while again.

        Raises:
            RefusedError: not an upload, or one that was removed.
        """
        known = Path(path) if isinstance(path, str) and "\x00" not in path else None
        with self._lock:
            upload = self._known.get(known) if known else None
            if known is None or upload is None:
                raise RefusedError(403, "this image was not uploaded here, or was removed since; upload it again")
            upload.used = time.monotonic()
        return known

    def check_served(self, path: str) -> None:
        """Check the path of a file that a browser requests: an upload, or an image of a hit.

        Raises:
            RefusedError: neither.
        """
        is_served = False
        with suppress(OSError, ValueError):  # too long a name; a NUL
            # without links and "..": a file in the folder that only the user interface writes
            found = Path(path)
            is_here = os.path.realpath(found) == path and found.is_relative_to(self.folder)
            is_served = is_here and stat.S_ISREG(found.lstat().st_mode)
        if not is_served:
            raise RefusedError(404, "no such image")

    async def sweep(self, every: float = 30.0) -> None:
        """Remove unused uploads every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(every)
            self.remove_older_than(KEPT_SECONDS)

    def remove_older_than(self, seconds: float) -> None:
        now = time.monotonic()
        with self._lock:
            for path in [path for path, upload in self._known.items() if now - upload.used >= seconds]:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        del self._known[path]
        path.unlink(missing_ok=True)
        with suppress(OSError):  # removed by hand, or not empty
            path.parent.rmdir()
