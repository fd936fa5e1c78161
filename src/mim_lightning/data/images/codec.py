"""Encoded images to uint8 pixels: JPEG by simplejpeg, scaled while decoding, everything else by Pillow.

Bytes come in, an (H, W, 3) array goes out; `transforms` and `prepare` call it. Whatever decodes a picture from
elsewhere does it here, where `limits` are kept.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from mim_lightning.data.images.header import (
    JPEG_MAGIC,
    PictureHeader,
    is_cut_off,
    jpeg_orientation,
    open_picture,
    picture_orientation,
    read_header,
    reason_of,
)
from mim_lightning.data.images.limits import LIMITS, PictureLimits, TruncatedImageError, UnreadableImageError

MAX_PIXELS = LIMITS.pixels
REENCODED = ("HEIF", "AVIF")  # never stored as they come: browsers and other machines may not read them
AVIF_PIXELS = 1 << 28  # that libavif decodes of one: the size a file says need not be that of the frame inside
PIXEL_WEIGHTS = {"WEBP": 2, "JPEG2000": 3}  # 20 and 25 bytes of a pixel are held, 10 of the others
STRIP_PIXELS = 1 << 20  # converted at once: a large picture is held once as it is and once as RGB, and no more


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image whose header was parsed, and found within `LIMITS`: decoding it does not parse it again."""

    data: bytes
    header: PictureHeader

    @classmethod
    def of(cls, data: bytes | EncodedImage, limits: PictureLimits | None = None) -> EncodedImage:
        """Parse the header, unless that is done, and hold it to `limits` besides.

        Raises:
            UnreadableImageError: not an image.
            ImageTooLargeError: beyond a limit.
        """
        image = data if isinstance(data, EncodedImage) else cls(data, read_header(data))
        for each in (limits, LIMITS):
            if each is not None:
                each.check(image.header.height, image.header.width, image.header.num_scans)
        return image

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, as they are stored."""
        return self.header.height, self.header.width

    @property
    def work_pixels(self) -> int:
        """How many pixels decoding holds in memory.

        A pixel is what a PNG's takes: kinds whose decoders hold more of each count for several.
        """
        if self.header.kind == "AVIF":
            return AVIF_PIXELS
        if (
            self.header.kind == "JPEG" and not self.header.is_in_scans
        ):  # read line by line, and scaled to what is needed
            return self.header.height * self.header.width // 4
        return self.header.height * self.header.width * PIXEL_WEIGHTS.get(self.header.kind, 1)


def image_size(data: bytes, limits: PictureLimits | None = None) -> tuple[int, int]:
    """Return (height, width) from the header alone; errors as in `EncodedImage.of`."""
    return EncodedImage.of(data, limits).size


def decode_image(data: bytes | EncodedImage, min_height: int = 0, min_width: int = 0) -> np.ndarray:
    """Decode to RGB uint8 (H, W, 3); a JPEG at half its size or less if that still has the least sides.

    Transparent pixels become white. The EXIF orientation is not applied here: `prepare` turned the pixels.

    Raises:
        UnreadableImageError: not an image, or damaged.
        ImageTooLargeError: beyond a limit; nothing was decoded.
    """
    return _decode(EncodedImage.of(data), min_height, min_width)[0]


def decode_truncated(data: bytes) -> np.ndarray:
    """Decode what is there of a file that is cut off, grey or black where nothing is left."""
    image_size(data)
    if data[:2] == JPEG_MAGIC:
        return simplejpeg.decode_jpeg(data, "RGB", strict=False)
    with _lenient(), open_picture(data) as image:
        return _rgb_pixels(image)


@contextmanager
def _lenient() -> Iterator[None]:
    """Let Pillow take what is there of a file; it has one switch for everyone."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def decode_upright(data: bytes | EncodedImage, min_height: int = 0, min_width: int = 0) -> np.ndarray:
    """Decode as `decode_image` does, the sides as stored, and turn as the file's EXIF says."""
    return _turned(*_decode_oriented(EncodedImage.of(data), min_height, min_width))


def _decode_oriented(image: EncodedImage, min_height: int, min_width: int) -> tuple[np.ndarray, int]:
    """Return the pixels as they are stored, and the EXIF orientation."""
    pixels, orientation = _decode(image, min_height, min_width)
    return pixels, jpeg_orientation(image.data) if orientation is None else orientation


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (H, W, 3) as an EXIF orientation says: no byte is copied but where torch wants it so."""
    pixels = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    vertical, horizontal = (-1 if orientation in flipped else 1 for flipped in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return np.ascontiguousarray(pixels[::vertical, ::horizontal])


def _decode(encoded: EncodedImage, min_height: int, min_width: int) -> tuple[np.ndarray, int | None]:
    """Return the pixels as they are stored, and the EXIF orientation; None: a JPEG was not asked for it."""
    data = encoded.data
    try:
        if data[:2] == JPEG_MAGIC:
            # fractions between a half and the whole are slower than decoding in full
            pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=min_height, min_width=min_width, min_factor=2)
            return pixels, None
        with open_picture(data) as image:
            image.load()
            return _rgb_pixels(image), picture_orientation(image)
    except Exception as error:  # each plugin has its own: those written in Python come upon an IndexError
        kind = TruncatedImageError if is_cut_off(data) else UnreadableImageError
        raise kind(f"damaged image ({reason_of(error)})") from error


def decode_exactly(data: bytes) -> np.ndarray:
    """Decode to RGB uint8 (H, W, 3) at full size, without shortcuts: a lossless copy in another format gives the same.

    Raises:
        ValueError: see `decode_image`.
    """
    if data[:2] != JPEG_MAGIC:
        return decode_image(data)
    image_size(data)
    try:
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except ValueError as error:
        raise UnreadableImageError(f"damaged image ({reason_of(error)})") from error


def _rgb_pixels(image: Image.Image) -> np.ndarray:
    num_rows = max(1, STRIP_PIXELS // image.width)
    if num_rows >= image.height:
        return np.array(_rgb(image))  # a copy: torch warns of read-only memory
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, num_rows):
        bottom = min(image.height, top + num_rows)
        pixels[top:bottom] = np.asarray(_rgb(image.crop((0, top, image.width, bottom))))
    return pixels


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def normalise_encoding(data: bytes, max_side: int) -> bytes:
    """Return the picture as it is stored: upright, no side over `max_side` pixels; untouched if it is so already.

    Raises:
        ValueError: see `decode_image`.
    """
    encoded = EncodedImage.of(data)
    height, width = encoded.size
    share = min(1.0, max_side / max(height, width, 1))
    # also the proof that the whole file is readable; most of a large picture's way down costs nothing while decoding
    pixels, orientation = _decode_oriented(encoded, math.ceil(height * share), math.ceil(width * share))
    if orientation == 1 and max(height, width) <= max_side and encoded.header.kind not in REENCODED:
        return data
    return _encode_jpeg(_turned(pixels, orientation), max_side)


def as_stored(image: EncodedImage) -> EncodedImage | np.ndarray:
    """Return an image as `normalise_encoding` leaves it at its own size, decoded already if that took decoding.

    A JPEG that is stored as it came is returned as it is, so that it is decoded once, at the size that is needed.

    Raises:
        ValueError: see `decode_image`.
    """
    if image.header.kind == "JPEG" and jpeg_orientation(image.data) == 1:
        return image
    pixels, orientation = _decode_oriented(image, *image.size)
    if orientation == 1 and image.header.kind not in REENCODED:
        return pixels
    upright = _turned(pixels, orientation)
    return EncodedImage(_encode_jpeg(upright, max(image.size)), PictureHeader("JPEG", *upright.shape[:2]))


def _encode_jpeg(pixels: np.ndarray, max_side: int) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def sharpness(data: bytes) -> float:
    """Return how sharp a picture is: the variance of its Laplacian on a 0 to 255 scale, at about 256 pixels a side.

    Source: Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy" (variance of the Laplacian).
    """
    image = Image.fromarray(decode_image(data, 256, 256)).convert("L")
    image.thumbnail((256, 256), Image.Resampling.BOX)
    grey = np.pad(np.asarray(image, dtype=np.float64), 1, mode="edge")
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(laplacian.var())
