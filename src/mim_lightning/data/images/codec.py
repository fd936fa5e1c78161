"""Decoding and re-encoding of images, and hashes of their pixels: JPEG by simplejpeg, all else by Pillow.

Decode untrusted images here only: `LIMITS` are checked before a pixel is decoded.
"""

from __future__ import annotations

import hashlib
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
    ImageHeader,
    image_orientation,
    is_cut_off,
    jpeg_orientation,
    open_image,
    png_notes,
    read_header,
    reason_of,
)
from mim_lightning.data.images.limits import LIMITS, ImageLimits, TruncatedImageError, UnreadableImageError

REENCODED = ("HEIF", "AVIF")  # re-encoded for storage: not every browser and machine reads them
AVIF_PIXELS = 1 << 28  # that libavif decodes at most: the size in the header need not be that of the frame
PIXEL_WEIGHTS = {"WEBP": 2, "JPEG2000": 3}  # decoding takes 20 and 25 bytes a pixel, 10 for other formats
STRIP_PIXELS = 1 << 20  # converted at once: a large image is in memory once as decoded and once as RGB, not more often
MAX_KNOWN = 200_000  # images whose hash a process keeps, of some 200 bytes each

_known_hashes: dict[bytes, int] = {}  # by digest of the encoded bytes: evaluation reads the same images every epoch


@dataclass(frozen=True)
class EncodedImage:
    """An image whose header was parsed and is within `LIMITS`; decoding does not parse it again."""

    data: bytes
    header: ImageHeader

    @classmethod
    def of(cls, data: bytes | EncodedImage, limits: ImageLimits | None = None) -> EncodedImage:
        """Parse the header, unless that was done, and check it against `limits` too.

        Raises:
            UnreadableImageError: not an image.
            ImageTooLargeError: it exceeds a limit.
        """
        image = data if isinstance(data, EncodedImage) else cls(data, read_header(data))
        for each in (limits, LIMITS):
            if each is not None:
                each.check(image.header.height, image.header.width, image.header.num_scans)
        return image

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, as stored."""
        return self.header.height, self.header.width

    @property
    def work_pixels(self) -> int:
        """The memory that decoding takes, in pixels of a PNG."""
        if self.header.kind == "AVIF":
            return AVIF_PIXELS
        num_pixels = self.header.height * self.header.width
        if self.header.kind == "JPEG" and not self.header.is_in_scans:  # read line by line, scaled to what is needed
            return num_pixels // 4
        return num_pixels * PIXEL_WEIGHTS.get(self.header.kind, 1)


def image_size(data: bytes, limits: ImageLimits | None = None) -> tuple[int, int]:
    """Return (height, width) from the header alone; errors as in `EncodedImage.of`."""
    return EncodedImage.of(data, limits).size


def upright_size(image: EncodedImage) -> tuple[int, int]:
    """Return (height, width) as the EXIF orientation says, without decoding.

    Raises:
        UnreadableImageError: damaged.
    """
    try:
        if image.header.kind == "JPEG":
            orientation = jpeg_orientation(image.data)
        else:
            with open_image(png_notes(image.data) if image.header.kind == "PNG" else image.data) as opened:
                orientation = image_orientation(opened)
    except Exception as error:  # as in `_decode`
        raise UnreadableImageError(f"damaged image ({reason_of(error)})") from error
    height, width = image.size
    return (width, height) if orientation >= 5 else (height, width)


def decode_image(data: bytes | EncodedImage, min_height: int = 0, min_width: int = 0) -> np.ndarray:
    """Decode to RGB uint8 (H, W, 3); a JPEG at half its size or less if that is at least `min_height` by `min_width`.

    Transparent pixels become white. The EXIF orientation is not applied: stored images are upright.

    Raises:
        UnreadableImageError: not an image, or damaged.
        ImageTooLargeError: it exceeds a limit; nothing was decoded.
    """
    return _decode(EncodedImage.of(data), min_height, min_width)[0]


def decode_truncated(data: bytes) -> np.ndarray:
    """Decode what exists of a truncated file; the rest is gray or black.

    Raises:
        ValueError: see `decode_image`.
    """
    image_size(data)
    try:
        if data[:2] == JPEG_MAGIC:
            return simplejpeg.decode_jpeg(data, "RGB", strict=False)
        with _lenient(), open_image(data) as image:
            return _rgb_pixels(image)
    except Exception as error:  # as in `_decode`
        raise UnreadableImageError(f"damaged image ({reason_of(error)})") from error


@contextmanager
def _lenient() -> Iterator[None]:
    """Let Pillow decode truncated files; the switch is global."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def decode_upright(data: bytes | EncodedImage, min_height: int = 0, min_width: int = 0) -> np.ndarray:
    """Decode as `decode_image` does, with the sides as stored, and apply the EXIF orientation."""
    return _turned(*_decode_oriented(EncodedImage.of(data), min_height, min_width))


def _decode_oriented(image: EncodedImage, min_height: int, min_width: int) -> tuple[np.ndarray, int]:
    """Return the pixels as stored, and the EXIF orientation."""
    pixels, orientation = _decode(image, min_height, min_width)
    return pixels, jpeg_orientation(image.data) if orientation is None else orientation


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation to pixels (H, W, 3)."""
    pixels = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    vertical, horizontal = (-1 if orientation in flipped else 1 for flipped in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return np.ascontiguousarray(pixels[::vertical, ::horizontal])


def _decode(encoded: EncodedImage, min_height: int, min_width: int) -> tuple[np.ndarray, int | None]:
    """Return the pixels as stored, and the EXIF orientation; None: of a JPEG it was not read."""
    data = encoded.data
    try:
        if data[:2] == JPEG_MAGIC:
            # scales between a half and one are slower than decoding in full
            pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=min_height, min_width=min_width, min_factor=2)
            return pixels, None
        with open_image(data) as image:
            image.load()
            return _rgb_pixels(image), image_orientation(image)
    except Exception as error:  # each plugin has error classes of its own; those in Python raise IndexError
        kind = TruncatedImageError if is_cut_off(data) else UnreadableImageError
        raise kind(f"damaged image ({reason_of(error)})") from error


def decode_exactly(data: bytes) -> np.ndarray:
    """Decode to RGB uint8 (H, W, 3) at full size, exactly: a lossless copy in another format has the same pixels.

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
        # Pillow would clip 16-bit gray to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def normalize_encoding(data: bytes, max_side: int) -> bytes:
    """Return an image as it is stored: upright, no side over `max_side` pixels; the same bytes if it is so already.

    Raises:
        ValueError: see `decode_image`.
    """
    encoded = EncodedImage.of(data)
    height, width = encoded.size
    scale = min(1.0, max_side / max(height, width, 1))
    # decoding also proves that the whole file is readable; scaling down while decoding is almost free
    pixels, orientation = _decode_oriented(encoded, math.ceil(height * scale), math.ceil(width * scale))
    if orientation == 1 and max(height, width) <= max_side and encoded.header.kind not in REENCODED:
        return data
    return encode_jpeg(_turned(pixels, orientation), max_side)


def as_stored(image: EncodedImage) -> EncodedImage | np.ndarray:
    """Return an image as `normalize_encoding` stores it at its own size, decoded if that took decoding.

    An upright JPEG is returned as it is, to be decoded once, at the size that is needed.

    Raises:
        ValueError: see `decode_image`.
    """
    if image.header.kind == "JPEG" and jpeg_orientation(image.data) == 1:
        return image
    pixels, orientation = _decode_oriented(image, *image.size)
    if orientation == 1 and image.header.kind not in REENCODED:
        return pixels
    upright = _turned(pixels, orientation)
    return EncodedImage(encode_jpeg(upright, max(image.size)), ImageHeader("JPEG", *upright.shape[:2]))


def encode_jpeg(pixels: np.ndarray, max_side: int) -> bytes:
    """Return pixels (H, W, 3) as a JPEG of them alone, no side over `max_side` pixels: no EXIF, no location."""
    image = Image.fromarray(pixels)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def sharpness(data: bytes) -> float:
    """Return the sharpness of an image: the variance of its Laplacian on a 0 to 255 scale, at about 256 pixels a side.

    Source: Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy" (variance of the Laplacian).
    """
    image = Image.fromarray(decode_image(data, 256, 256)).convert("L")
    image.thumbnail((256, 256), Image.Resampling.BOX)
    gray = np.pad(np.asarray(image, dtype=np.float64), 1, mode="edge")
    laplacian = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * gray[1:-1, 1:-1]
    return float(laplacian.var())


def hash_pixels(data: bytes) -> int:
    """Return a 63-bit hash of an image's height, width and RGB pixels: equal for equal images in any encoding.

    Raises:
        ValueError: it does not decode.
    """
    digest = hashlib.blake2b(data, digest_size=16).digest()
    key = _known_hashes.get(digest)
    if key is None:
        pixels = decode_exactly(data)
        size = f"{pixels.shape[0]}x{pixels.shape[1]}".encode()
        key = _to_int63(hashlib.blake2b(pixels.data, digest_size=8, salt=size))
        if len(_known_hashes) < MAX_KNOWN:
            _known_hashes[digest] = key
    return key


def hash_bytes(data: bytes) -> int:
    """Return a 63-bit hash of the encoded bytes: cheap, but another encoding of the same image has another hash."""
    return _to_int63(hashlib.blake2b(data, digest_size=8))


def _to_int63(digest: hashlib.blake2b) -> int:
    return int.from_bytes(digest.digest(), "big") >> 1
