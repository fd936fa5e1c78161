"""Images as a user has them (bytes, paths, PIL images, arrays) to the uint8 tensor that an encoder takes.

They pass through the same functions as in `prepare` and evaluation, so they are embedded as stored images are.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mim_lightning.data.images.boxes import Box, decode_box, validate_box
from mim_lightning.data.images.codec import EncodedImage, as_stored, decode_upright
from mim_lightning.data.images.limits import read_image_file
from mim_lightning.data.images.transforms import eval_image
from mim_lightning.types import ImageSpec

ImageInput = Union[bytes, EncodedImage, str, Path, Image.Image, np.ndarray, "BoxedImage"]
"""Encoded bytes, the same with their header parsed, a path, a PIL image, (H, W, 3) uint8 RGB, or a box of these."""

PPM_MODES = ("RGB", "L")  # of PIL images that PPM stores without loss
PNG_MODES = ("1", "LA", "P", "RGBA", "I", "I;16")


@dataclass(frozen=True)
class BoxedImage:
    """The part of an image that shows what is meant.

    Raises:
        ValueError: the box is empty, or reaches out of the image.
    """

    image: bytes | EncodedImage | str | Path | Image.Image | np.ndarray
    box: Box

    def __post_init__(self) -> None:
        validate_box(self.box)

    @property
    def work_pixels(self) -> int:
        """The memory that decoding an encoded image takes, see `EncodedImage`: all of it, if the box is small."""
        image = EncodedImage.of(self.image)  # type: ignore[arg-type]
        return max(image.work_pixels, math.prod(image.size))


class ImageInputError(ValueError):
    """One of several images cannot be used.

    Attributes:
        position: in the user's list.
        reason: one line, without position and path.
    """

    def __init__(self, position: int, reason: str, path: str | Path | None = None) -> None:
        super().__init__(f"image {position}{f', {path}' if path is not None else ''}: {reason}")
        self.position, self.reason = position, reason


def prepare_images(
    images: Sequence[ImageInput], spec: ImageSpec, max_side: int | None, positions: Sequence[int]
) -> Tensor:
    """Return the images (n, 3, H, W) uint8 as evaluation would see them.

    Args:
        images: at least one.
        spec: of the encoder.
        max_side: pixels of the longest side that `prepare` stored; None: not limited.
        positions: of the images in the user's list, for errors.

    Raises:
        ImageInputError: no image, damaged, or too large; names its position and path.
    """
    out = torch.empty(len(images), 3, *spec.size, dtype=torch.uint8)
    for row, image, position in zip(out, images, positions, strict=True):
        try:
            if isinstance(image, BoxedImage):
                found: EncodedImage | np.ndarray = decode_box(_encode(image.image), image.box, max_side)
            else:
                found = _decode_as_stored(_encode(image), max_side)
            row.copy_(eval_image(found, spec))
        except (ValueError, OSError, SyntaxError) as error:
            source = image.image if isinstance(image, BoxedImage) else image
            path = source if isinstance(source, (str, Path)) else None
            raise ImageInputError(position, _reason(error), path) from error
    return out


def _encode(image: bytes | EncodedImage | str | Path | Image.Image | np.ndarray) -> bytes | EncodedImage:
    """Return an image as the bytes of a file with exactly its pixels."""
    if isinstance(image, bytes | EncodedImage):
        return image
    if isinstance(image, (str, Path)):
        return read_image_file(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"an array must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
        return _save(Image.fromarray(np.ascontiguousarray(image)), "PPM")
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if image.mode in PPM_MODES and not image.has_transparency_data:
            return _save(image, "PPM")
        return _save(image if image.mode in PNG_MODES else image.convert("RGB"), "PNG")
    raise ValueError(f"give bytes, a path, a PIL image or an array, not {type(image).__name__}")


def _save(image: Image.Image, format_name: str) -> bytes:
    out = io.BytesIO()
    image.save(out, format_name, **({"compress_level": 1} if format_name == "PNG" else {}))
    return out.getvalue()


def _decode_as_stored(data: bytes | EncodedImage, max_side: int | None) -> EncodedImage | np.ndarray:
    """Return the image upright, as `prepare` stores it.

    An image larger than stored ones is scaled while it is decoded, and neither resized in full nor compressed again:
    a tenth of the time for a phone's photo, at an embedding that differs by 0.001 (docs/inference.md).
    """
    image = EncodedImage.of(data)
    longest = max(image.size)
    if max_side is None or longest <= max_side:
        return as_stored(image)
    return decode_upright(image, *(math.ceil(side * max_side / longest) for side in image.size))


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return (str(error) or type(error).__name__).splitlines()[0]
