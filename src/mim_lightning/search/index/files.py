"""The folder of an index: whole generations of files, and the card that says which of them count.

`segment_files` writes files beside what is there; replacing `card.json` is what makes them the index, and only then are
older files removed. A process that dies on the way changes nothing. `faiss_index` calls it.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path

from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import errors_as_damaged_file, validate_regular_file
from mim_lightning.io.file_name import validate_inside
from mim_lightning.search.index.card import AGAIN, IndexCard, StoredFile, read_card

CARD_FILE = "card.json"
LOCK_FILE = ".lock"
_OURS = re.compile(
    r"(main|fresh)_(index|vectors|rows|products|dead)-[0-9a-f]{12}\.(faiss|npy|arrow)"
    r"|\.(card|main_|fresh_)[\w.-]*\.[0-9a-f-]+\.partial"
)
_ALWAYS_VERIFIED = 2**25  # bytes; larger files would make opening slow
_BLOCK = 2**22


def read_folder_card(folder: Path) -> IndexCard:
    """Return the card of the index in a folder.

    Raises:
        ValueError: there is no index, or its card is damaged.
    """
    path = folder / CARD_FILE
    try:
        with errors_as_damaged_file(path, AGAIN):
            return read_card(path.read_text("utf-8"), str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder}: holds no index (no {CARD_FILE}); build one with build_index") from None


def seal(path: Path) -> StoredFile:
    """Make sure that a file is on the disk, and return its facts."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return StoredFile(path.name, path.stat().st_size, _crc32(path))


def _crc32(path: Path) -> int:
    found = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            found = zlib.crc32(block, found)
    return found


def commit(folder: Path, card: IndexCard) -> None:
    """Make the files that the card names the index of the folder, and remove those of older generations."""
    with atomic_write(folder / CARD_FILE) as partial:
        partial.write_text(card.to_json(), "utf-8")
    remove_unnamed(folder, {stored.name for stored in card.files.values()})


def named_files(folder: Path) -> set[str]:
    """Return the files that the card in a folder names; none, where there is no card."""
    return {stored.name for stored in read_folder_card(folder).files.values()} if has_card(folder) else set()


def has_card(folder: Path) -> bool:
    return (folder / CARD_FILE).is_file()


def remove_unnamed(folder: Path, named: set[str]) -> None:
    """Remove files of an index that no card names; what else lies in the folder is not ours."""
    for path in folder.iterdir():
        if path.name not in named and _OURS.fullmatch(path.name):
            path.unlink(missing_ok=True)


def check_file(path: Path, stored: StoredFile, verify: bool) -> None:
    num_bytes = path.stat().st_size  # FileNotFoundError, where the card may be newer by now
    validate_inside(path.parent, path)
    validate_regular_file(path, AGAIN)
    if num_bytes != stored.num_bytes:
        raise ValueError(f"{path}: has {num_bytes} bytes, should have {stored.num_bytes}; build the index anew")
    if (verify or num_bytes <= _ALWAYS_VERIFIED) and _crc32(path) != stored.crc32:
        raise ValueError(f"{path}: was changed or damaged since it was written; build the index anew")
