"""One process at a time, until it ends, however it ends."""

import subprocess
import sys
from pathlib import Path

from mim_lightning.sweep.lock import release, try_lock

HOLD = """
import sys
from pathlib import Path
from mim_lightning.sweep.lock import wait_for_lock
wait_for_lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert try_lock(path) is None
        other.kill()
    held = try_lock(path)
    assert held is not None
    assert try_lock(path) is None
    release(held)
    assert try_lock(path) is not None
