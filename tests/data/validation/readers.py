"""Readers of images for other processes, which import this file and so should not import pytest."""

from __future__ import annotations

import os
import time
from pathlib import Path

from mim_lightning.data.images.reader import ImageRef
from mim_lightning.data.validation.image_scan import scan_images


def read(ref: ImageRef) -> bytes:
    return Path(str(ref)).read_bytes()


def read_slowly(ref: ImageRef) -> bytes:
    time.sleep(0.003)
    return read(ref)


def die_at_seven(ref: ImageRef) -> bytes:
    if Path(str(ref)).name == "7.jpg":
        os._exit(1)
    return read(ref)


def survey_slowly(folder: str, num: int) -> None:
    refs: list[ImageRef] = [Path(folder) / f"{number}.jpg" for number in range(num)]
    scan_images(refs, read_slowly, Path(folder) / "facts.jsonl", 1)
