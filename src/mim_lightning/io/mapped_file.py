"""Arrays in files that are larger than memory: their blocks exist before they are written.

Where a disk fills up, writing to mapped memory ends the process with SIGBUS; here it is an error before that.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from mim_lightning.io.atomic import write_errors_named

IN_MEMORY = 1 << 28  # bytes


def allocate(file: BinaryIO, num_bytes: int, path: Path) -> None:
    """Reserve the first bytes of a file on its disk.

    Raises:
        OSError: the disk is full; names `path`.
    """
    if num_bytes and hasattr(os, "posix_fallocate"):  # not on macOS; no bytes are an invalid argument
        with write_errors_named(path):
            os.posix_fallocate(file.fileno(), 0, num_bytes)


def map_new(file: BinaryIO, dtype: npt.DTypeLike, shape: tuple[int, ...], path: Path) -> np.memmap:
    """Return an array in a new file.

    Args:
        path: to name if the disk is full.

    Raises:
        OSError: it is.
    """
    allocate(file, int(np.prod(shape)) * np.dtype(dtype).itemsize, path)
    return np.memmap(file, dtype, "r+", shape=shape)


def make_array(dtype: npt.DTypeLike, shape: tuple[int, ...], folder: Path) -> np.ndarray:
    """Return an array in memory, or a large one in a file of the folder that is gone when nobody uses it.

    Raises:
        OSError: the disk is full; names the folder.
    """
    if int(np.prod(shape)) * np.dtype(dtype).itemsize <= IN_MEMORY:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        return map_new(file, dtype, shape, folder)
