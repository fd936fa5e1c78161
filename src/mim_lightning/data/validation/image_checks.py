"""Inspects images: size, whether they decode, whether they show anything, and a perceptual hash to compare them by.

Imports no torch, as it runs in the processes of a scan. The header of an oversized image is enough to reject it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import imagehash
import numpy as np
from PIL import Image

from mim_lightning.data.images.codec import EncodedImage, decode_upright
from mim_lightning.data.images.limits import MAX_FILE_BYTES, ImageTooLargeError, TruncatedImageError
from mim_lightning.data.images.reader import ImageRef, TarMember
from mim_lightning.data.manifest.rows import Product, Query
from mim_lightning.data.validation.findings import Finding
from mim_lightning.data.validation.settings import ValidationSettings

if TYPE_CHECKING:
    from mim_lightning.data.manifest.manifest import Manifest

DECODED_SIDE = 128  # pixels of the shorter side at which images are inspected
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


ImageTable = Mapping[ImageRef, ImageProperties]


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


def image_refs(manifest: Manifest) -> Iterator[ImageRef]:
    """Yield the images of products, then of queries, in the order of the tables."""
    for product in manifest.products.values():
        yield from product.images
    for query in manifest.queries:
        if query.image is not None:
            yield query.image


def find_invalid_images(manifest: Manifest, images: ImageTable, settings: ValidationSettings) -> Iterator[Finding]:
    """Yield unreadable, truncated, oversized and blank images.

    An invalid image drops its row, unless a product has other, valid ones.
    """
    for product in manifest.products.values():
        found = [one for ref in product.images if (one := _check_image(product, ref, images[ref], settings))]
        others_remain = sum(one.is_error for one in found) < len(product.images)
        for one in found:
            yield replace(one, drops="image") if one.is_error and others_remain else one
    for query in manifest.queries:
        if query.image is not None and (one := _check_image(query, query.image, images[query.image], settings)):
            yield one


def _check_image(
    row: Product | Query, ref: ImageRef, image: ImageProperties, settings: ValidationSettings
) -> Finding | None:
    kind, reason = image.kind, image.reason
    if not kind and image.uniform_fraction >= settings.blank_image_fraction:
        kind, reason = "near_empty_image", f"{100 * image.uniform_fraction:.1f} % of the pixels have almost one color"
    if not kind:
        return None
    table, row_id = ("queries", row.query_id) if isinstance(row, Query) else ("products", row.product_id)
    return Finding(kind, table, row.origin, row_id, "image", f"{ref}: {reason}", settings.drops(kind), ref)


def _describe(error: Exception) -> str:
    """Return an error in one line, with its type if the message alone may say little."""
    text = " ".join(str(error).split())
    return text if text and isinstance(error, ValueError | OSError) else f"{type(error).__name__} {text}".rstrip()
