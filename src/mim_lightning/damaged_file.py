"""One line for a file that cannot be what its name says: empty, cut short, overwritten, of another kind.

Whatever a reader raises at a file comes in, a `DamagedFileError` with the file's path and the way out goes out. Every
place that reads a file which the project wrote goes through here.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mim_lightning.display_text import plain


class FileError(ValueError):
    """What is wrong with the content of a file; its message names it.

    Attributes:
        path: of the file.
    """

    path: Path | str


class DamagedFileError(FileError):
    """A file that is there and cannot be read as what it should be.

    Args:
        path: the file.
        reason: what is wrong with it.
        remedy: what mends it; empty where the file is the user's own.
    """

    def __init__(self, path: str | Path, reason: str, remedy: str = "") -> None:
        self.path, self.reason, self.remedy = str(path), reason, remedy
        super().__init__(f"{path}: damaged ({reason})" + (f"; {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[type[DamagedFileError], tuple[str, str, str]]:
        return type(self), (str(self.path), self.reason, self.remedy)


@contextmanager
def naming_damage(path: str | Path, remedy: str = "") -> Iterator[None]:
    """Turn whatever is raised while a file is read and taken apart into a `DamagedFileError`.

    A local path must be a regular file: reading a pipe or a device may never end.

    Raises:
        DamagedFileError: not a regular file, or no content of the right kind.
        OSError: it is not there, or may not be read; names the file.
    """
    try:
        if isinstance(path, Path):
            refuse_irregular(path, remedy)
        yield
    except FileError:
        raise
    except OSError as error:
        if error.errno is None:  # a library's own word for a file that is none of its
            raise DamagedFileError(path, describe(error), remedy) from error
        if error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:  # each format has its own kinds, and a damaged header brings about all others
        raise DamagedFileError(path, describe(error), remedy) from error


def refuse_irregular(path: Path, remedy: str = "") -> None:
    """Raise unless a path is a regular file, or a link to one."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise DamagedFileError(path, f"is {kind}, no file", remedy)


def describe(error: Exception) -> str:
    """Return an exception as one line of bounded length; a damaged file may be quoted in it."""
    words = plain(" ".join(str(error).split()))
    if isinstance(error, KeyError):
        return f"{words} is missing"
    return words or type(error).__name__
