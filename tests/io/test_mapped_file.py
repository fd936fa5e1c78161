"""Arrays in new files: they have their values, and a full disk is an error instead of the end of the process."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from mim_lightning.io.mapped_file import map_new


def test_an_array_in_a_file_outlives_its_handle(tmp_path: Path) -> None:
    with (tmp_path / "rows").open("w+b") as file:
        array = map_new(file, np.float32, (3, 4), tmp_path)
        assert os.fstat(file.fileno()).st_blocks, "the disk has room for it"
    array[:] = 7.5
    array.flush()
    assert np.array_equal(np.fromfile(tmp_path / "rows", np.float32), np.full(12, 7.5, np.float32))


def test_a_full_disk_is_an_error_that_names_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (tmp_path / "rows").open("w+b") as file, pytest.raises(OSError, match=f"No space left.*{tmp_path}'"):
        map_new(file, np.float32, (3, 4), tmp_path)


def test_an_array_may_be_empty(tmp_path: Path) -> None:
    with (tmp_path / "rows").open("w+b") as file:
        assert map_new(file, np.float32, (0, 4), tmp_path).shape == (0, 4)
