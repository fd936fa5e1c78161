"""Limits say what is too much with the right status, and rates are those of each client."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from mim_lightning.search.service.limits import Limits, RateLimit, RefusedError


def png_of(width: int, height: int) -> bytes:
    """A file that says it has so many pixels, and has none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def picture(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("images", "status", "message"),
    [
        ([picture(8)] * 3, 413, "image: 3 pictures, at most 2"),
        ([picture(8), b"GIF? no"], 415, "image 2: not a readable image"),
        ([picture(40)], 413, "image 1: 40 x 40 pixels, at most 1,000"),
        ([png_of(50_000, 50_000)], 413, "image 1: .* pixels"),
    ],
)
def test_pictures_that_are_refused(images: list[bytes], status: int, message: str) -> None:
    with pytest.raises(RefusedError, match=message) as refused:
        Limits(num_images=2, pixels=1000).check_images(images)
    assert refused.value.status == status


def test_texts_and_numbers_of_hits() -> None:
    limits = Limits(text_length=5, num_hits=3)
    limits.check_text("text", "12345")
    limits.check_num_hits(3)
    with pytest.raises(RefusedError, match="not_text: 6 characters, at most 5"):
        limits.check_text("not_text", "123456")
    for wrong in (0, 4):
        with pytest.raises(RefusedError, match=f"k: {wrong}, must be 1 to 3"):
            limits.check_num_hits(wrong)


def test_a_burst_then_a_steady_rate_for_each_client() -> None:
    rate = RateLimit(per_minute=60)
    for _ in range(60):
        rate.take("a", now=0.0)
    with pytest.raises(RefusedError, match=r"wait 1\.0 s") as refused:
        rate.take("a", now=0.0)
    assert refused.value.status == 429 and refused.value.retry_after == pytest.approx(1)
    rate.take("b", now=0.0)
    rate.take("a", now=1.0)
    with pytest.raises(RefusedError):
        rate.take("a", now=1.5)


def test_no_rate_and_no_growing_memory() -> None:
    for _ in range(1000):
        RateLimit(0).take("a")
    rate = RateLimit(1)
    rate.MAX_CLIENTS = 10
    for client in range(100):
        rate.take(str(client), now=0.0)
    assert len(rate._buckets) == 10


def test_a_limit_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"limits\.pixels=0: must be at least 1"):
        Limits(pixels=0)
