"""Inspects images: size, whether they decode, whether they show anything, and a perceptual hash to compare them by.

Imports no torch, as it runs in the processes of a scan. The header of an oversized image is enough to reject it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image

from mim_lightning.data.images.codec import EncodedImage, decode_upright
from mim_lightning.data.images.limits import MAX_FILE_BYTES, ImageTooLargeError, TruncatedImageError
from mim_lightning.data.images.reader import ImageRef, TarMember
from mim_lightning.data.manifest.stored_rows import StoredRows, image_of
from mim_lightning.data.validation.findings import Finding
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.display.text import plain

DECODED_SIDE = 128  # pixels of the shorter side at which images are inspected
MAX_REF = 1_000  # characters of a path or URL that a finding quotes
COLOR_TOLERANCE = 8  # levels of 255 in which pixels of one color may differ


@dataclass(frozen=True, slots=True)
class ImageProperties:
    """Properties of one stored image; an invalid one has a `kind` of finding and a `reason`.

    Attributes:
        height, width: pixels as stored; 0 if the header cannot be read.
        uniform_fraction: of the pixels, within COLOR_TOLERANCE of the image's median color.
        perceptual_hash: 64 bits, of the gray image.
        grid_colors: mean red, green and blue of a 3 x 3 grid, as 54 hexadecimal digits.
    """

    num_bytes: int = 0
    height: int = 0
    width: int = 0
    uniform_fraction: float = 0.0
    perceptual_hash: int = 0
    grid_colors: str = ""
    kind: str = ""
    reason: str = ""


def inspect_image(ref: ImageRef, read: Callable[[ImageRef], bytes]) -> ImageProperties:
    """Read one image and return its properties; never raises for a damaged or missing file."""
    try:
        num_bytes = ref.stat().st_size if isinstance(ref, Path) else ref.size if isinstance(ref, TarMember) else 0
        if num_bytes > MAX_FILE_BYTES:
            reason = f"{num_bytes:,} bytes, at most {MAX_FILE_BYTES:,} are read"
            return ImageProperties(num_bytes, kind="huge_image", reason=reason)
        data = read(ref)
    except FileNotFoundError:
        return ImageProperties(kind="unreadable_image", reason="no such file")
    except ImageTooLargeError as error:
        return ImageProperties(num_bytes, kind="huge_image", reason=_describe(error))
    except (OSError, ValueError) as error:
        return ImageProperties(kind="unreadable_image", reason=_describe(error))
    return image_properties(data)


def image_properties(data: bytes) -> ImageProperties:
    """Return the properties of an encoded image."""
    height, width = 0, 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            encoded = EncodedImage.of(data)
            height, width = encoded.size
            image = Image.fromarray(decode_upright(encoded, DECODED_SIDE, DECODED_SIDE))
    except Exception as error:  # decoders raise anything for damaged files, and no file may stop the validation
        kind = "huge_image" if isinstance(error, ImageTooLargeError) else "unreadable_image"
        kind = "truncated_image" if isinstance(error, TruncatedImageError) else kind
        return ImageProperties(len(data), height, width, kind=kind, reason=_describe(error))
    small = np.asarray(image.resize((64, 64), Image.Resampling.BOX), dtype=np.int16)
    distances = np.abs(small - np.median(small, axis=(0, 1))).max(axis=2)
    return ImageProperties(
        num_bytes=len(data),
        height=height,
        width=width,
        uniform_fraction=round(float((distances <= COLOR_TOLERANCE).mean()), 4),
        # DCT hash of Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"
        perceptual_hash=int(str(imagehash.phash(image)), 16),
        grid_colors=image.resize((3, 3), Image.Resampling.BOX).tobytes().hex(),
    )


def find_invalid_images(rows: StoredRows, images: str, settings: ValidationSettings) -> Iterator[Finding]:
    """Yield unreadable, truncated, oversized and blank images.

    An invalid image drops its row, unless a product has other, valid ones.

    Args:
        images: the table of their properties in the store, see `scan_images`.
    """
    store = rows.store
    bad = store.select(
        "bad",
        f"SELECT key, kind, reason, uniform_fraction FROM {images} WHERE kind != '' OR uniform_fraction >= ?",
        [settings.blank_image_fraction],
    )
    of_products = store.read(
        f"""SELECT position, 'products', origin, product_id, num_images, key, kind, reason, uniform_fraction FROM (
            SELECT *, len(images) AS num_images, unnest(images) AS key, generate_subscripts(images, 1) AS idx
            FROM {rows.products}
        ) JOIN {bad} USING (key) ORDER BY position, idx"""
    )
    for _, group in groupby(of_products, key=lambda row: row[0]):
        found = list(group)
        findings = [_invalid_image(row, settings) for row in found]
        others_remain = sum(one.is_error for one in findings) < found[0][4]
        for one in findings:
            yield replace(one, drops="image") if one.is_error and others_remain else one
    for row in store.read(
        f"""SELECT position, 'queries', origin, query_id, 1, key, kind, reason, uniform_fraction
        FROM {rows.queries} JOIN {bad} ON image = key ORDER BY position"""
    ):
        yield _invalid_image(row, settings)


def _invalid_image(row: Sequence[Any], settings: ValidationSettings) -> Finding:
    _, table, origin, row_id, _, key, kind, reason, uniform_fraction = row
    if not kind:
        kind, reason = "near_empty_image", f"{100 * uniform_fraction:.1f} % of the pixels have almost one color"
    ref = image_of(key)
    return Finding(kind, table, origin, row_id, "image", f"{plain(ref, MAX_REF)}: {reason}", settings.drops(kind), ref)


def _describe(error: Exception) -> str:
    """Return an error in one line, with its type if the message alone may say little."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # the whole repeats the path
    text = plain(" ".join(str(error).split()), MAX_REF)
    return text if text and isinstance(error, ValueError | OSError) else f"{type(error).__name__} {text}".rstrip()
