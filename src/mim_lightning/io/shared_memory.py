"""The shared memory that processes of one program need for their queues and batches; a container may have none."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

SHARED_MEMORY, MIN_FREE = Path("/dev/shm"), 2**20  # noqa: S108 - of the system; bytes


def validate_shared_memory(without: str) -> None:
    """Check that there is shared memory before processes start: the error of the system would not name it.

    Args:
        without: the setting that needs none, such as "data.num_workers=0".

    Raises:
        OSError: it is missing, full, or may not be written.
    """
    if sys.platform != "linux":
        return
    if not SHARED_MEMORY.is_dir():
        code = errno.ENOENT
    elif not os.access(SHARED_MEMORY, os.W_OK):
        code = errno.EACCES
    elif shutil.disk_usage(SHARED_MEMORY).free < MIN_FREE:
        code = errno.ENOSPC
    else:
        return
    reason = f"{os.strerror(code)}, but further processes need this shared memory; provide some, or set {without}"
    raise OSError(code, reason, str(SHARED_MEMORY))
