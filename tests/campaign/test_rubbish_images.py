"""Malformed images are refused in one line by everything that decodes: preparation, search and service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mim_lightning.data.images.codec import decode_truncated, decode_upright, normalize_encoding
from mim_lightning.data.images.limits import ImageError, read_image_file
from mim_lightning.data.images.reader import ImageReader
from mim_lightning.data.validation.image_checks import inspect_image
from tests.campaign.malformed import ANYTHING, Verdict, every, judge, record
from tests.campaign.rubbish_images import CASES, BadImage


@pytest.mark.parametrize("case", every(CASES, 6))
def test_malformed_images(case: BadImage, tmp_path: Path) -> None:
    record("image", case.wrong, *verdicts(tmp_path, case))


def verdicts(folder: Path, case: BadImage) -> list[Verdict]:
    path = folder / "image"
    case.write(path)

    def search() -> Any:  # as `search image=` and the service read a query
        return decode_upright(read_image_file(path), 32, 32).ndim

    def inspect() -> Any:  # as the validation does, which raises nothing
        found = inspect_image(path, ImageReader().read)
        if found.kind:
            assert found.reason and "\n" not in found.reason
            raise ImageError(found.reason)
        return 3

    def prepare() -> Any:
        return decode_upright(normalize_encoding(path.read_bytes(), 64)).ndim

    def lenient() -> Any:  # of truncated files, as an option
        return decode_truncated(path.read_bytes()).ndim

    means = 3 if case.is_sound else None
    return [
        *(judge(read, folder, "", means) for read in (search, inspect, prepare)),
        judge(lenient, folder, "", ANYTHING),
    ]
