"""How the C library returns freed memory to the system: it can keep the large blocks of a step for the next one.

Training on a CPU allocates hundreds of MB of activations in every step and frees them at its end. glibc returns blocks
above 32 MB, and free memory at the end of its heap, to the kernel at once, which zeroes fresh pages in the next step.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # numbers of <malloc.h>
NEVER = -1  # as a threshold: the largest size there is
GROWTH = 64 * 2**20  # bytes that the heap grows by, at least


@cache  # once a process: it cannot be undone
def keep_freed_memory() -> bool:
    """Have this process, and those that it forks, keep freed blocks of any size; return whether it does.

    Only glibc has such a setting, and only there is it needed. Its own environment variables would work as well, but
    only if they were set before the interpreter starts.
    """
    if not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # without mmap every block comes from the heap; a threshold above 32 MB for mmap is refused by glibc
    return all(
        mallopt(option, value) == 1
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, GROWTH))
    )


def _is_glibc() -> bool:
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, ValueError, OSError):  # not Unix, or another C library
        return False
