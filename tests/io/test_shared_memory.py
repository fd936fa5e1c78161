"""Missing, full or unwritable shared memory is named before processes start."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mim_lightning.io import shared_memory
from mim_lightning.io.shared_memory import validate_shared_memory


@pytest.mark.skipif(sys.platform != "linux", reason="others need no /dev/shm")
def test_shared_memory_that_is_of_no_use_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path / "shm")
    with pytest.raises(OSError, match=r"No such file .* set data\.num_workers=0.*shm'"):
        validate_shared_memory("data.num_workers=0")
    (tmp_path / "shm").mkdir()
    validate_shared_memory("data.num_workers=0")
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"No space left on device, .*num_workers=1"):
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        validate_shared_memory("data.num_workers=1")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(PermissionError, match=r"Permission denied, .*shm'"):
        validate_shared_memory("data.num_workers=0")
