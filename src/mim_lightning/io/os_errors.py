"""Errors of the operating system: their line, which names the file first, and those that are no fault of the file."""

from __future__ import annotations

import errno
import os


def lacks_descriptors(error: BaseException) -> bool:
    """Return whether an error says that this process, or the machine, may open no more files."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def describe_os_error(error: OSError) -> str:
    """Return an error as "<file>: <what is wrong>", in a line."""
    place = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
    if error.errno is not None and lacks_descriptors(error):
        return f"{place}{os.strerror(error.errno)}; raise the limit of this shell with ulimit -n"
    if place and error.strerror:
        return f"{place}{error.strerror}"
    return " ".join(str(error).split())
