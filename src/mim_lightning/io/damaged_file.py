"""A damaged file as an error of one line: empty, truncated, overwritten, of another format, or not a regular file.

Use `errors_as_damaged_file` around the reading and parsing of every file that the project wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mim_lightning.display.text import plain
from mim_lightning.io.paths import irregular_kind


class FileError(ValueError):
    """The content of a file is wrong; the message names the file.

    Attributes:
        path: of the file.
    """

    path: Path | str


class DamagedFileError(FileError):
    """A file exists but cannot be read in its format.

    Args:
        path: the file.
        reason: what is wrong with it.
        remedy: how to repair it; empty if the file is the user's own.
    """

    def __init__(self, path: str | Path, reason: str, remedy: str = "") -> None:
        self.path, self.reason, self.remedy = str(path), reason, remedy
        super().__init__(f"{path}: damaged ({reason})" + (f"; {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[type[DamagedFileError], tuple[str, str, str]]:
        return type(self), (str(self.path), self.reason, self.remedy)


@contextmanager
def errors_as_damaged_file(path: str | Path, remedy: str = "") -> Iterator[None]:
    """Turn any exception of reading and parsing a file into a `DamagedFileError`.

    A local path must be a regular file: reading a pipe or a device may never end.

    Raises:
        DamagedFileError: not a regular file, or its content is not of the expected format.
        OSError: it does not exist or may not be read; names the file.
    """
    try:
        if isinstance(path, Path):
            validate_regular_file(path, remedy)
        yield
    except FileError:
        raise
    except OSError as error:
        if error.errno is None:  # a library's way to say that the file is not of its format
            raise DamagedFileError(path, describe_error(error), remedy) from error
        if error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:  # each format raises its own classes, and a damaged header causes any other
        raise DamagedFileError(path, describe_error(error), remedy) from error


def validate_regular_file(path: Path, remedy: str = "") -> None:
    """Raise `DamagedFileError` unless a path is a regular file, or a link to one."""
    kind = irregular_kind(path.stat().st_mode)
    if kind:
        raise DamagedFileError(path, f"is {kind}, not a file", remedy)


def describe_error(error: Exception) -> str:
    """Return an exception as one line of bounded length; it may quote the damaged file."""
    text = plain(" ".join(str(error).split()))
    if isinstance(error, KeyError):
        return f"{text} is missing"
    return text or type(error).__name__
