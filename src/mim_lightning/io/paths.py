"""Paths and URLs as one type: a file on this machine, or one that fsspec opens (https://, s3://, gs://, hf://)."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

PathOrUrl = Path | str  # a str is a URL

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocol -> our extra that installs its client
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def to_path_or_url(text: str) -> PathOrUrl:
    """Parse a path or URL from config or a table; `file://` becomes a path."""
    text = str(text)  # a name such as 2024 is a number on the command line
    if not _URL.match(text):
        return Path(text)
    return Path(unquote(urlsplit(text).path)) if text.lower().startswith("file://") else text


def join(root: PathOrUrl, text: str) -> PathOrUrl:
    """Return the file that `text` names, where relative paths start at `root`."""
    place = to_path_or_url(text)
    if isinstance(place, str):
        return place
    if isinstance(root, Path):
        return root / place
    return place if place.is_absolute() else f"{root.rstrip('/')}/{text}"


def parent_of(place: PathOrUrl) -> PathOrUrl:
    return place.parent if isinstance(place, Path) else place.rsplit("/", 1)[0]


def suffix(place: PathOrUrl) -> str:
    """Return ".parquet" of "products.Parquet"; the query of a URL (?...) is ignored."""
    return Path(place if isinstance(place, Path) else place.split("?")[0]).suffix.lower()


def irregular_kind(mode: int) -> str:
    """Return what a file is that is not a regular file, from its `st_mode`: reading it may never end. Else ""."""
    if stat.S_ISREG(mode):
        return ""
    return "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"


def open_binary(place: PathOrUrl) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: fsspec does not know the protocol, or an extra is missing.
    """
    if isinstance(place, Path):
        return place.open("rb")
    system, path = file_system(place)
    return system.open(path, "rb")


def file_size(place: PathOrUrl) -> int:
    """Return the size of a file in bytes."""
    if isinstance(place, Path):
        return place.stat().st_size
    system, path = file_system(place)
    return int(system.size(path))


def read_range(place: PathOrUrl, start: int, stop: int) -> bytes:
    """Return the bytes from `start` to `stop`, fewer at the end of the file."""
    if isinstance(place, str):
        system, path = file_system(place)
        return bytes(system.cat_file(path, start=start, end=stop))
    with place.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def find_files(place: PathOrUrl, suffixes: tuple[str, ...]) -> list[PathOrUrl]:
    """Return the file itself, the matches of a pattern (with *), or a folder's files with one of the suffixes.

    Folders are searched recursively; names that begin with "_" or "." are markers of query engines and are left out.
    """
    if isinstance(place, str):
        with io_errors_as_value_error(place), suppress(FileNotFoundError):  # no such bucket
            return _find_remote(place, suffixes)
        return []
    if "*" in str(place):
        return sorted(path for path in Path(place.anchor).glob(str(place.relative_to(place.anchor))) if path.is_file())
    if not place.is_dir():
        return [place] if place.is_file() else []
    names = {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}
    return [path for name, path in sorted(names.items()) if _is_wanted(name, suffixes)]


def _find_remote(url: str, suffixes: tuple[str, ...]) -> list[PathOrUrl]:
    system, path = file_system(url)
    if "*" in path:
        found = system.glob(path)
    elif system.isfile(path):
        return [url]
    else:
        top = path.rstrip("/") + "/"
        found = [name for name in system.find(path) if _is_wanted(name.removeprefix(top), suffixes)]
    return [system.unstrip_protocol(name) for name in sorted(found)]


def _is_wanted(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not any(part.startswith(("_", ".")) for part in name.split("/"))


@contextmanager
def io_errors_as_value_error(place: PathOrUrl) -> Iterator[None]:
    """Turn errors of a disk, a network or a store's client into a ValueError of one line that names the file.

    Raises:
        ValueError: the reading failed; FileNotFoundError passes unchanged.
    """
    try:
        yield
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:
        # a store's client has error classes of its own; a built-in one that is no OSError is a bug of ours
        if not isinstance(error, OSError) and type(error).__module__ == "builtins":
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{place}: cannot be read ({reason})") from error


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    Raises:
        ValueError: fsspec does not know the protocol, or its client is not installed.
    """
    import fsspec

    protocol = url.split("://", 1)[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        remedy = f"install the extra: pip install 'mim-lightning[{extra}]'" if extra else str(error)
        raise ValueError(f"{protocol}:// cannot be opened; {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{protocol}:// cannot be opened ({error})") from error
    return system, str(path)
