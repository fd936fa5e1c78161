"""With the setting, a process takes the pages of a large block from the system once; without, again and again."""

import os
import platform
import subprocess
import sys

import pytest

# zeroed by Python itself, so that every page is touched; 64 MB is above any threshold of glibc's own
BLOCKS = """
import resource, sys
from mim_lightning.allocator import keep_freed_memory
is_kept = sys.argv[1] == "kept" and keep_freed_memory() and keep_freed_memory()
def touch():
    for _ in range(4):
        bytearray(b"1" * 2**26)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(is_kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_blocks_are_used_again() -> None:
    faults = {}
    for name, expected in (("returned", "False"), ("kept", "True")):
        words = [sys.executable, "-c", BLOCKS, name]
        is_kept, num_faults = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        assert is_kept == expected
        faults[name] = int(num_faults)
    pages = 4 * 2**26 // os.sysconf("SC_PAGESIZE")
    assert faults["kept"] < 0.01 * pages < pages <= faults["returned"]


def test_another_c_library_is_left_alone() -> None:
    code = "import os; os.confstr = lambda name: 'musl'\nfrom mim_lightning.allocator import keep_freed_memory\n"
    words = [sys.executable, "-c", f"{code}print(keep_freed_memory())"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "False\n"
