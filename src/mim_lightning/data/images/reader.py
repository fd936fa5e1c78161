"""References to images - a file, a URL, a cell of a table, a member of a tar file - and a reader of them.

A reference is small and never contains the bytes; a reader may be sent to other processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mim_lightning.data.images.download import Downloads, DownloadSettings
from mim_lightning.data.images.limits import read_image_file
from mim_lightning.data.images.table_cells import ARROW, read_cell, unpack_all
from mim_lightning.io.paths import read_range, to_path_or_url


@dataclass(frozen=True, slots=True)
class TableCell:
    """An image in a table."""

    path: str  # of the Parquet or Arrow file
    row: int  # from 0
    column: str
    item: int = 0  # index in a cell with several images

    def __str__(self) -> str:
        return f"{self.path}, row {self.row + 1}, column '{self.column}'" + (f" [{self.item}]" if self.item else "")


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image in a tar file."""

    path: str  # of the tar file
    name: str
    offset: int  # of its first byte
    size: int  # bytes

    def __str__(self) -> str:
        return f"{self.path}, member '{self.name}' at {self.offset}"


ImageRef = Path | str | TableCell | TarMember  # a str is a URL


class ImageReader:
    """Reads encoded images by reference; small, and cheap to send to another process.

    Args:
        download: how images at URLs are downloaded and cached; None: the defaults of DownloadSettings.
    """

    def __init__(self, download: DownloadSettings | None = None) -> None:
        self.downloads = Downloads(download or DownloadSettings())

    def read(self, ref: ImageRef) -> bytes:
        """Return an encoded image; errors do not repeat the reference.

        Raises:
            FileNotFoundError: no such file.
            ValueError, OSError: it cannot be read; one line.
        """
        if isinstance(ref, Path):
            return read_image_file(ref)
        if isinstance(ref, str):
            return self.downloads.read(ref)
        if isinstance(ref, TarMember):
            data = read_range(to_path_or_url(ref.path), ref.offset, ref.offset + ref.size)
            if len(data) < ref.size:
                raise ValueError("the tar file ends inside the image")
            return data
        found = read_cell(ref.path, ref.row, ref.column, ref.item, self.downloads.settings.cache)
        return found if isinstance(found, bytes) else self.read(found)

    def fetch_all(self, refs: Iterable[ImageRef]) -> dict[ImageRef, str]:
        """Cache everything that is slow to read, and return the references that failed, with reasons.

        URLs are downloaded, columns of Parquet files are unpacked; what is cached already stays. Without a cache this
        does nothing: each `read` downloads again.

        Raises:
            ValueError: a table is damaged.
        """
        cache = self.downloads.settings.cache
        if cache is None:
            return {}
        urls: dict[str, None] = {}
        columns: dict[tuple[str, str], None] = {}
        for ref in refs:
            if isinstance(ref, str):
                urls[ref] = None
            elif isinstance(ref, TableCell) and not ref.path.endswith(ARROW):
                columns[ref.path, ref.column] = None
        unpack_all(columns, cache)
        failures: dict[ImageRef, str] = {}
        failures.update(self.downloads.fetch_all(urls))
        return failures
