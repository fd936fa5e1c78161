"""Boxes: parts of an upright image, as fractions of its width and height."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mim_lightning.data.images.codec import EncodedImage, decode_upright
from mim_lightning.data.images.limits import ImageLimits, ImageTooLargeError

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as fractions of the width and height of an upright image."""

BOX_LIMITS = ImageLimits(aspect=100)  # a sliver of a large photo would be resized to gigabytes


def validate_box(box: Sequence[float]) -> None:
    """Raise ValueError unless it is a `Box` with an area."""
    if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        given = ",".join(f"{side:g}" for side in box)
        raise ValueError(
            f"box={given}: give left, top, right and bottom as fractions of the image, such as box=[0.1,0.2,0.6,0.9]"
        )


def decode_box(data: bytes | EncodedImage, box: Box, max_side: int | None) -> np.ndarray:
    """Return the pixels in a box of the upright image, decoded no larger than an image of this part is stored.

    Raises:
        ImageTooLargeError: one side of the box is many times the other.
    """
    image = EncodedImage.of(data)
    left, top, right, bottom = box
    # the stored sides may be swapped: the shorter one bounds what either is of the part
    longest = max(right - left, bottom - top) * min(image.size)
    scale = 1.0 if max_side is None else min(1.0, max_side / longest)
    pixels = decode_upright(image, *(math.ceil(side * scale) for side in image.size))
    height, width = pixels.shape[:2]
    first_row, first_column = min(int(top * height), height - 1), min(int(left * width), width - 1)
    # a box thinner than rounding has a pixel too
    end_row = max(math.ceil(bottom * height), first_row + 1)
    end_column = max(math.ceil(right * width), first_column + 1)
    try:
        BOX_LIMITS.check(end_row - first_row, end_column - first_column)
    except ImageTooLargeError as error:
        raise ImageTooLargeError(f"the box has {error}") from None
    return np.ascontiguousarray(pixels[first_row:end_row, first_column:end_column])
