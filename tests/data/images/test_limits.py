"""Only regular files of bounded size are read: no pipe, no device."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mim_lightning.data.images.limits import MAX_FILE_BYTES, ImageTooLargeError, UnreadableImageError, read_image_file
from mim_lightning.data.images.reader import ImageReader


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"abc")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "a.jpg")
    assert read_image_file(tmp_path / "a.jpg", 3) == read_image_file(str(tmp_path / "b.jpg")) == b"abc"
    with pytest.raises(FileNotFoundError):
        read_image_file(tmp_path / "c.jpg")


def test_pipes_devices_and_folders_are_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path, words in ((tmp_path / "pipe.jpg", "a pipe"), (Path("/dev/zero"), "a pipe"), (tmp_path, "folder")):
        for read in (read_image_file, ImageReader().read):
            with pytest.raises(UnreadableImageError, match=words):
                read(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "film.jpg").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # no bytes on disk
    with pytest.raises(ImageTooLargeError, match="at most"):
        read_image_file(tmp_path / "film.jpg")
    with pytest.raises(ImageTooLargeError, match="no more are read"):
        read_image_file("/proc/self/maps", 10)
