"""Parts of an uploaded photo, chosen or suggested, within the limits of a service."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from mim_lightning.data.images.boxes import Box, decode_box
from mim_lightning.data.images.codec import EncodedImage, decode_upright, upright_size
from mim_lightning.data.images.limits import ImageError
from mim_lightning.inference.detector import MAX_SIDE, Detector, SuggestedBox
from mim_lightning.inference.image_inputs import BoxedImage
from mim_lightning.search.service.request_limits import Limits, PixelBudget, RefusedError, refused_image


class PhotoParts:
    """Reads parts of photos that are searched for.

    Args:
        limits: of an image.
        budget: bounds the pixels that the service decodes at once.
        detector: suggests parts; None: none is suggested.
    """

    def __init__(self, limits: Limits, budget: PixelBudget, detector: Detector | None = None) -> None:
        self._limits, self._budget, self._detector = limits, budget, detector
        self._turn = PixelBudget(1, "too many photos wait for the detector; try again")  # one photo at a time

    @property
    def suggests(self) -> bool:
        """Whether there is a detector."""
        return self._detector is not None

    def position(self, data: bytes, x: float, y: float) -> tuple[float, float]:
        """Return a pixel of an upright photo as fractions of its width and height.

        Raises:
            RefusedError: no image, or too large.
        """
        try:
            height, width = upright_size(self._checked(data))
        except ImageError as error:
            raise refused_image(1, str(error), error) from error
        return min(max(x / width, 0.0), 1.0), min(max(y / height, 0.0), 1.0)

    def read(self, data: bytes, box: Box, max_side: int) -> np.ndarray:
        """Return the pixels in a box (H, W, 3), as a search gets them, at about `max_side` pixels.

        Raises:
            RefusedError: no image, too large, damaged; or the box is empty.
        """
        image = self._checked(data)
        try:
            with self._budget.reserve(BoxedImage(image, box).work_pixels):
                return decode_box(image, box, max_side)
        except ImageError as error:
            raise refused_image(1, str(error), error) from error
        except ValueError as error:
            raise RefusedError(422, str(error)) from error

    def suggest(self, data: bytes) -> list[SuggestedBox]:
        """Return the boxes that the detector suggests for a photo, best first.

        Raises:
            RefusedError: there is no detector; no image, too large, or damaged; or too many requests wait.
        """
        if self._detector is None:
            raise RefusedError(
                404, "suggest_boxes: this service has no detector; start it with detector.weights=<file>"
            )
        image = self._checked(data)
        scale = min(1.0, MAX_SIDE / max(image.size))
        try:
            with self._budget.reserve(image.work_pixels):
                pixels = decode_upright(image, *(math.ceil(side * scale) for side in image.size))
                shown = Image.fromarray(pixels)  # at full size, unless it is a JPEG
                shown.thumbnail((MAX_SIDE, MAX_SIDE))
                pixels = np.array(shown)
        except ImageError as error:
            raise refused_image(1, str(error), error) from error
        with self._turn.reserve(1):
            return self._detector.suggest(pixels)

    def _checked(self, data: bytes) -> EncodedImage:
        return self._limits.check_images([data])[0]
