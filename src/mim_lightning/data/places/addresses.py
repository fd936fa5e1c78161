"""Places of files: a path on this machine, or an address that fsspec opens (https://, s3://, gs://, hf:// ...).

Texts from tables and config come in, a Path or a str (an address) goes out; tables, tar files and pictures are
opened here, so that all of them may lie in an object store.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

Place = Path | str  # a str is an address

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocol -> our extra that brings it
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def place_of(text: str) -> Place:
    """Return the place that a text of the user's names; `file://` is a path."""
    if not _ADDRESS.match(text):
        return Path(text)
    return Path(unquote(urlsplit(text).path)) if text.lower().startswith("file://") else text


def under(root: Place, text: str) -> Place:
    """Return the place that `text` names when relative paths start at `root`."""
    place = place_of(text)
    if isinstance(place, str):
        return place
    if isinstance(root, Path):
        return root / place
    return place if place.is_absolute() else f"{root.rstrip('/')}/{text}"


def folder_of(place: Place) -> Place:
    return place.parent if isinstance(place, Path) else place.rsplit("/", 1)[0]


def ending_of(place: Place) -> str:
    """Return ".parquet" of "products.Parquet"; what follows ? in an address is no part of it."""
    return Path(place if isinstance(place, Path) else place.split("?")[0]).suffix.lower()


def open_binary(place: Place) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        FileNotFoundError: there is none.
        ValueError: nothing that fsspec knows, or an extra is missing.
    """
    if isinstance(place, Path):
        return place.open("rb")
    system, path = file_system(place)
    return system.open(path, "rb")


def size_of(place: Place) -> int:
    """Return the size of a file in bytes."""
    if isinstance(place, Path):
        return place.stat().st_size
    system, path = file_system(place)
    return int(system.size(path))


def read_range(place: Place, start: int, stop: int) -> bytes:
    """Return the bytes from `start` to `stop` (less, where the file ends before)."""
    if isinstance(place, str):
        system, path = file_system(place)
        return bytes(system.cat_file(path, start=start, end=stop))
    with place.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def find_files(place: Place, endings: tuple[str, ...]) -> list[Place]:
    """Return the file itself, those that a pattern (with *) matches, or those of a folder with such endings.

    Folders are searched to the bottom; names that begin with "_" or "." are what engines leave for themselves.
    """
    if isinstance(place, str):
        with reaching(place), suppress(FileNotFoundError):  # a bucket that is not there
            return _find_remote(place, endings)
        return []
    if "*" in str(place):
        return sorted(path for path in Path(place.anchor).glob(str(place.relative_to(place.anchor))) if path.is_file())
    if not place.is_dir():
        return [place] if place.is_file() else []
    names = {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}
    return [path for name, path in sorted(names.items()) if _is_wanted(name, endings)]


def _find_remote(address: str, endings: tuple[str, ...]) -> list[Place]:
    system, path = file_system(address)
    if "*" in path:
        found = system.glob(path)
    elif system.isfile(path):
        return [address]
    else:
        top = path.rstrip("/") + "/"
        found = [name for name in system.find(path) if _is_wanted(name.removeprefix(top), endings)]
    return [system.unstrip_protocol(name) for name in sorted(found)]


def _is_wanted(name: str, endings: tuple[str, ...]) -> bool:
    return name.lower().endswith(endings) and not any(part.startswith(("_", ".")) for part in name.split("/"))


@contextmanager
def reaching(place: Place) -> Iterator[None]:
    """Make what goes wrong with a disk, a network or a store's client an error of one line that names the place.

    Raises:
        ValueError: as said; FileNotFoundError stays what it is.
    """
    try:
        yield
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:
        # a store's client has errors of its own; other built-in ones are mistakes of ours
        if not isinstance(error, OSError) and type(error).__module__ == "builtins":
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{place}: cannot be read ({reason})") from error


def file_system(address: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and the path in it.

    Raises:
        ValueError: no such protocol, or what it needs is not installed.
    """
    import fsspec

    protocol = address.split("://", 1)[0]
    try:
        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        remedy = f"install the extra: pip install 'mim-lightning[{extra}]'" if extra else str(error)
        raise ValueError(f"{protocol}:// cannot be opened; {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{protocol}:// cannot be opened ({error})") from error
    return system, str(path)
