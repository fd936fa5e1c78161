"""Readers of images for other processes, which import this file and so should not import pytest."""

from __future__ import annotations

import os
import time
from pathlib import Path

from mim_lightning.data.images.reader import ImageRef
from mim_lightning.data.validation.image_scan import scan_images


def read(ref: ImageRef) -> bytes:
    return Path(str(ref)).read_bytes()


def die_at_seven(ref: ImageRef) -> bytes:
    if Path(str(ref)).name == "7.jpg":
        os._exit(1)
    return read(ref)


def survey_and_stop(folder: str, num: int, num_read: int) -> None:
    """Read so many pictures, then wait to be killed."""
    refs: list[ImageRef] = [Path(folder) / f"{number}.jpg" for number in range(num)]
    left = iter(range(num_read))

    def read_until(ref: ImageRef) -> bytes:
        if next(left, None) is None:
            time.sleep(600)
        return read(ref)

    scan_images(refs, read_until, Path(folder) / "facts.jsonl", 1)
