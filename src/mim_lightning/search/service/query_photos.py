"""Photos of recorded queries, where the operator of a service asks for them: without EXIF, named by their content."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from pathlib import Path

import numpy as np

from mim_lightning.data.images.boxes import Box, decode_box
from mim_lightning.data.images.codec import EncodedImage, decode_upright, encode_jpeg
from mim_lightning.inference.image_inputs import BoxedImage
from mim_lightning.io.atomic import atomic_write
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.service.request_limits import PixelBudget, RefusedError

MAX_SIDE = 1024  # pixels of a stored photo
LOG_SECONDS = 60.0
LOG = logging.getLogger(__name__)


class QueryPhotos:
    """A folder of photos.

    Args:
        folder: is created with the first photo.
        budget: bounds the pixels that the service decodes at once.
    """

    def __init__(self, folder: Path, budget: PixelBudget) -> None:
        self.folder, self._budget, self._log_at = folder, budget, -math.inf

    def store(self, image: EncodedImage, box: Box | None = None) -> str | None:
        """Write a photo, or the part of it in the box, unless it is there, and return its path.

        None: it could not be stored, which one line a minute of the log says.
        """
        name = _hash(image.data, *map(repr, box or ()))
        path = (self.folder / name[:2] / f"{name}.jpg").absolute()
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with self._budget.reserve((image if box is None else BoxedImage(image, box)).work_pixels):
                    encoded = encode_jpeg(_decode(image, box), MAX_SIDE)
                with atomic_write(path) as partial:
                    partial.write_bytes(encoded)
        except (OSError, ValueError, RefusedError) as error:
            if time.monotonic() >= self._log_at:
                self._log_at = time.monotonic() + LOG_SECONDS
                LOG.error("%s: a photo was not stored: %s", self.folder, " ".join(str(error).split()))
            return None
        return str(path)


def parts_of(query: SearchQuery) -> list[str]:
    """Return all that makes a query, with hashes of its images, whose headers were parsed."""
    texts = {"text": query.text, "not_text": query.not_text, "like": query.like, **query.fields}
    parts = [*map(_hash, (image.data for image in query.images))]
    parts += [part for name, text in sorted(texts.items()) if text for part in (name, text)]
    for name, value in (("box", query.box), ("weights", query.weights), ("where", query.where)):
        if value:
            parts += [name, json.dumps(value, sort_keys=True, default=str)]
    return parts


def is_row(query: SearchQuery) -> bool:
    """Return whether a row of queries, one image and one text, says all that was asked for."""
    return not (query.not_text or query.like or query.fields or query.where or len(query.images) > 1)


def _decode(image: EncodedImage, box: Box | None) -> np.ndarray:
    if box is not None:
        return decode_box(image, box, MAX_SIDE)
    scale = min(1.0, MAX_SIDE / max(image.size))
    return decode_upright(image, *(math.ceil(side * scale) for side in image.size))


def _hash(data: bytes, *parts: str) -> str:
    digest = hashlib.blake2b(data, digest_size=16)
    for part in parts:
        digest.update(f" {part}".encode())
    return digest.hexdigest()
