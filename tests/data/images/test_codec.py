"""Images of every format become upright RGB; an unreadable one is a ValueError."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mim_lightning.data.images.codec import decode_image, image_size, normalize_encoding
from mim_lightning.data.images.limits import LIMITS
from tests.data.conftest import encoded, jpeg, picture

ORIENTATION = 0x0112


def difference(left: np.ndarray, right: object) -> float:
    assert left.shape == np.asarray(right).shape
    return float(np.abs(left.astype(float) - np.asarray(right).astype(float)).mean())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_formats_agree_with_pillow(kind: str) -> None:
    data = encoded(picture(1), kind)
    with Image.open(io.BytesIO(data)) as image:
        assert difference(decode_image(data), image.convert("RGB")) < 0.5
    assert image_size(data) == (24, 32)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpeg(mode: str) -> None:
    data = encoded(picture(1).convert(mode))
    with Image.open(io.BytesIO(data)) as image:
        assert difference(decode_image(data), image.convert("RGB")) < 1.5


def test_grey_png_of_16_bits() -> None:
    grey = np.linspace(0, 65535, 24 * 32).reshape(24, 32).astype(np.uint16)
    assert difference(decode_image(encoded(Image.fromarray(grey), "PNG"))[..., 0], grey >> 8) == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 4), (200, 0, 0, 255))
    image.paste((10, 20, 30, 0), (0, 0, 4, 4))
    pixels = decode_image(encoded(image.convert(mode), "PNG"))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] < 255).any(axis=-1).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    upright = picture(2, 40, 64)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transpose that undoes what a viewer would do
    stored = upright.transpose(Image.Transpose(turn[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = normalize_encoding(encoded(stored, exif=exif), max_side=100)
    assert difference(decode_image(data), upright) < 3
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif().get(ORIENTATION, 1) == 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x09", b"Exif\0\0"])
def test_damaged_exif_does_not_damage_the_image(exif: bytes) -> None:
    data = encoded(picture(), exif=exif)
    assert normalize_encoding(data, max_side=100) == data


def test_a_large_image_is_resized_a_small_one_unchanged() -> None:
    large = encoded(picture(3, 90, 300))
    with Image.open(io.BytesIO(normalize_encoding(large, max_side=100))) as image:
        assert image.size == (100, 30)
    for data in (jpeg(3), encoded(picture(3), "PNG"), encoded(picture(3), exif=Image.Exif())):
        assert normalize_encoding(data, max_side=32) is data


def test_scaled_decoding_has_at_least_the_given_sides() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width, min_height, min_width = (int(n) for n in rng.integers(1, 200, 4))
        pixels = decode_image(jpeg(0, height, width), min_height, min_width)
        assert pixels.shape[0] >= min(height, min_height)
        assert pixels.shape[1] >= min(width, min_width)
    assert decode_image(jpeg(0, 160, 320), 40, 80).shape == (40, 80, 3)
    assert decode_image(jpeg(0, 160, 320), 81, 80).shape == (160, 320, 3)


def bomb(width: int, height: int) -> bytes:
    """Return a PNG whose header promises many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def jpeg_bomb() -> bytes:
    data = jpeg()
    size_at = data.index(b"\xff\xc0") + 5
    return data[:size_at] + struct.pack(">HH", 60_000, 60_000) + data[size_at + 4 :]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"just a text file, no picture",
        jpeg()[: len(jpeg()) // 2],
        jpeg()[:-200],
        encoded(picture(), "PNG")[:-60],
        encoded(picture(), "WEBP")[:40],
        bomb(100_000, 100_000),
        bomb(9_000, 9_000),
        jpeg_bomb(),
    ],
    ids=["empty", "magic", "text", "half", "short", "png", "webp", "bomb", "small bomb", "jpeg bomb"],
)
def test_unreadable_images(data: bytes) -> None:
    for read in (decode_image, lambda data: normalize_encoding(data, 100)):
        with pytest.raises(ValueError, match=r"image \(|at most") as caught:
            read(data)
        assert "\n" not in str(caught.value)


def test_the_limit_itself_is_not_refused() -> None:
    assert image_size(bomb(8_000, LIMITS.pixels // 8_000)) == (LIMITS.pixels // 8_000, 8_000)


def test_a_large_truncated_image_is_rejected_when_it_is_stored_smaller() -> None:
    data = encoded(picture(1, 900, 1200))
    with Image.open(io.BytesIO(normalize_encoding(data, max_side=100))) as image:
        assert image.size == (100, 75)
    for stop in (len(data) // 2, len(data) - 200):
        with pytest.raises(ValueError, match="damaged image"):
            normalize_encoding(data[:stop], max_side=100)
