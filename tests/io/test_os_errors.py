"""Errors of the operating system name their file first."""

from __future__ import annotations

import errno
import os

import pytest

from mim_lightning.io.os_errors import describe_os_error, lacks_descriptors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "shop/page.html"), "shop/page.html: Permission denied"),
        (OSError(errno.EMFILE, "x", b"a"), "a: Too many open files; raise the limit of this shell with ulimit -n"),
        (OSError(errno.ENFILE, "x"), f"{os.strerror(errno.ENFILE)}; raise the limit of this shell with ulimit -n"),
        (OSError("of a library,\n  in two lines"), "of a library, in two lines"),
    ],
)
def test_the_line(error: OSError, line: str) -> None:
    assert describe_os_error(error) == line


def test_what_lacks_descriptors() -> None:
    assert lacks_descriptors(OSError(errno.EMFILE, ""))
    assert not lacks_descriptors(OSError(errno.ENOSPC, "")) and not lacks_descriptors(ValueError())
