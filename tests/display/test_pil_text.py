"""An image is drawn in the middle of its cell, and nothing outside it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mim_lightning.display.pil_text import font, paste_image

SIDE, CORNER = 40, (30, 20)


def marks(picture: Image.Image | None, inset: int = 0) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom (the last two excluded) of what is not white on the sheet."""
    sheet = Image.new("RGB", (120, 100), "white")
    paste_image(sheet, CORNER, SIDE, picture, font(8), inset)
    rows, columns = np.nonzero((np.asarray(sheet) != 255).any(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize(
    ("size", "inset", "expected"),
    [((80, 40), 0, (30, 30, 70, 50)), ((5, 10), 0, (40, 20, 60, 60)), ((60, 60), 4, (34, 24, 66, 56))],
)
def test_an_image_is_as_large_as_fits(size: tuple[int, int], inset: int, expected: tuple[int, ...]) -> None:
    assert marks(Image.new("RGB", size, "black"), inset) == expected


def test_a_missing_image_is_written_in_the_middle() -> None:
    left, top, right, bottom = marks(None)
    assert 20 < top <= bottom < 60
    assert (left + right) / 2 == pytest.approx(50, abs=2) and (top + bottom) / 2 == pytest.approx(40, abs=2)
