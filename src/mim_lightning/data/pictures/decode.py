"""Encoded images to uint8 pixels: JPEG by simplejpeg, scaled while decoding, everything else by Pillow.

Bytes come in, an (H, W, 3) array goes out; `transforms` and `prepare` call it.
"""

from __future__ import annotations

import io
import math

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000  # larger pictures are refused: a few KB can unpack to gigabytes
JPEG_MAGIC = b"\xff\xd8"
ORIENTATION_TAG = 0x0112


def image_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) from the header alone.

    Raises:
        ValueError: not an image, or more pixels than MAX_PIXELS.
    """
    try:
        if data[:2] == JPEG_MAGIC:
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
        else:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
    except (ValueError, UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image ({_reason(error)})") from error
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, at most {MAX_PIXELS:,} are decoded")
    return height, width


def decode_image(data: bytes, min_height: int = 0, min_width: int = 0) -> np.ndarray:
    """Decode to RGB uint8 (H, W, 3); a JPEG at half its size or less if that still has the least sides.

    Transparent pixels become white. The EXIF orientation is not applied here: `prepare` turned the pixels.

    Raises:
        ValueError: not an image, damaged, or too large.
    """
    image_size(data)  # refuses what is too large to decode
    try:
        if data[:2] == JPEG_MAGIC:
            # fractions between a half and the whole are slower than decoding in full
            return simplejpeg.decode_jpeg(data, "RGB", min_height=min_height, min_width=min_width, min_factor=2)
        return _with_pillow(data)
    except (ValueError, OSError, SyntaxError) as error:
        raise ValueError(f"damaged image ({_reason(error)})") from error


def _with_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        image: Image.Image = opened
        if image.mode.startswith("I;16"):
            # Pillow would clip 16-bit grey to white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.array(image.convert("RGB"))  # a copy: torch warns of read-only memory


def normalise_encoding(data: bytes, max_side: int) -> bytes:
    """Return the picture as it is stored: upright, no side over `max_side` pixels; untouched if it is so already.

    Raises:
        ValueError: see `decode_image`.
    """
    height, width = image_size(data)
    share = min(1.0, max_side / max(height, width))
    # also the proof that the whole file is readable; most of a large picture's way down costs nothing while decoding
    pixels = decode_image(data, math.ceil(height * share), math.ceil(width * share))
    orientation = _orientation(data)
    if orientation == 1 and max(height, width) <= max_side:
        return data
    image = Image.fromarray(pixels)
    if orientation != 1:
        image.getexif()[ORIENTATION_TAG] = orientation
        image = ImageOps.exif_transpose(image)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def _orientation(data: bytes) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none that can be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a cut EXIF block raises what it likes, and the pixels are known to be fine
        return 1
    return orientation if orientation in range(1, 9) else 1


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "of no known format"  # Pillow names the buffer it read
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def sharpness(data: bytes) -> float:
    """Return how sharp a picture is: the variance of its Laplacian on a 0 to 255 scale, at about 256 pixels a side.

    Source: Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy" (variance of the Laplacian).
    """
    image = Image.fromarray(decode_image(data, 256, 256)).convert("L")
    image.thumbnail((256, 256), Image.Resampling.BOX)
    grey = np.pad(np.asarray(image, dtype=np.float64), 1, mode="edge")
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(laplacian.var())
