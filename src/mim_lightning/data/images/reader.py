"""Pictures wherever they lie: as a file, at an address, in a cell of a table, in a tar file.

Refs come in from sources (small, and never the bytes themselves), the stored, encoded picture goes out; `check` and
`prepared` read through an ImageReader, in as many processes as they like.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mim_lightning.data.images.download import Downloads, DownloadSettings
from mim_lightning.data.images.local_file import read_file
from mim_lightning.data.images.table_cells import ARROW, read_cell, unpack_all
from mim_lightning.io.paths import read_range, to_path_or_url


@dataclass(frozen=True, slots=True)
class TableCell:
    """A picture held in a table."""

    path: str  # of the Parquet or Arrow file
    row: int  # from 0
    column: str
    item: int = 0  # which of several pictures in the cell

    def __str__(self) -> str:
        return f"{self.path}, row {self.row + 1}, column '{self.column}'" + (f" [{self.item}]" if self.item else "")


@dataclass(frozen=True, slots=True)
class TarMember:
    """A picture held in a tar file."""

    path: str  # of the tar file
    name: str
    offset: int  # bytes before its first
    size: int  # bytes

    def __str__(self) -> str:
        return f"{self.path}, member '{self.name}' at {self.offset}"


ImageRef = Path | str | TableCell | TarMember  # a str is an address


class ImageReader:
    """Reads pictures by ref; small, and cheap to send to another process.

    Args:
        download: how pictures at addresses are fetched, and where they are kept; None: as DownloadSettings has it.
    """

    def __init__(self, download: DownloadSettings | None = None) -> None:
        self.downloads = Downloads(download or DownloadSettings())

    def read(self, ref: ImageRef) -> bytes:
        """Return a picture as it is stored; errors do not repeat the ref.

        Raises:
            FileNotFoundError: no such file.
            ValueError, OSError: anything else, in one line.
        """
        if isinstance(ref, Path):
            return read_file(ref)
        if isinstance(ref, str):
            return self.downloads.read(ref)
        if isinstance(ref, TarMember):
            return _read_member(ref)
        held = read_cell(ref.path, ref.row, ref.column, ref.item, self.downloads.settings.cache)
        return held if isinstance(held, bytes) else self.read(held)

    def fetch_all(self, refs: Iterable[ImageRef]) -> dict[ImageRef, str]:
        """Bring everything that is slow to read into the cache, and return what failed, with reasons.

        Addresses are downloaded, columns of Parquet files are unpacked; what is there already stays. Without a cache
        nothing is done: each `read` fetches for itself.

        Raises:
            ValueError: a table is damaged.
        """
        cache = self.downloads.settings.cache
        if cache is None:
            return {}
        addresses: dict[str, None] = {}
        columns: dict[tuple[str, str], None] = {}
        for ref in refs:
            if isinstance(ref, str):
                addresses[ref] = None
            elif isinstance(ref, TableCell) and not ref.path.endswith(ARROW):
                columns[ref.path, ref.column] = None
        unpack_all(columns, cache)
        failures: dict[ImageRef, str] = {}
        failures.update(self.downloads.fetch_all(addresses))
        return failures


def _read_member(member: TarMember) -> bytes:
    data = read_range(to_path_or_url(member.path), member.offset, member.offset + member.size)
    if len(data) < member.size:
        raise ValueError("the tar file ends inside the picture")
    return data
