"""What exceeds a limit is refused with the right status; rates count by client, pixels over all requests."""

from __future__ import annotations

import io
import json
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from mim_lightning.data.images.codec import EncodedImage
from mim_lightning.search.service import request_limits as module
from mim_lightning.search.service.request_limits import (
    MAX_MESSAGE,
    Limits,
    PixelBudget,
    RateLimit,
    RefusedError,
    error_response,
)
from tests.data.conftest import encoded
from tests.data.conftest import picture as pixels


def png_of(width: int, height: int) -> bytes:
    """A file whose header announces pixels that it does not have."""
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
        ([picture(8)] * 3, 413, "image: 3 images, at most 2"),
        ([picture(8), b"GIF? no"], 415, "image 2: not a readable image"),
        ([picture(40)], 413, "image 1: 40 x 40 pixels, at most 1,000"),
        ([png_of(50_000, 50_000)], 413, "image 1: .* pixels"),
    ],
)
def test_images_beyond_a_limit_are_refused(images: list[bytes], status: int, message: str) -> None:
    with pytest.raises(RefusedError, match=message) as refused:
        Limits(num_images=2, pixels=1000).check_images(images)
    assert refused.value.status == status


def test_text_length_and_number_of_hits() -> None:
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


def test_no_rate_limit_and_bounded_memory() -> None:
    for _ in range(1000):
        RateLimit(0).take("a")
    rate = RateLimit(1)
    rate.MAX_CLIENTS = 10
    for client in range(100):
        rate.take(str(client), now=0.0)
    assert len(rate._buckets) == 10


def test_a_limit_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"limits\.pixels=0: must be at least 1"):
        Limits(pixels=0)


def test_reserved_pixels_stay_within_the_budget_and_every_request_is_served() -> None:
    budget, lock = PixelBudget(100), threading.Lock()
    in_work, most, done = 0, 0, 0

    def work(num_pixels: int) -> None:
        nonlocal in_work, most, done
        with budget.reserve(num_pixels):
            with lock:
                in_work += min(num_pixels, 100)
                most = max(most, in_work)
            threading.Event().wait(0.002)
            with lock:
                in_work, done = in_work - min(num_pixels, 100), done + 1

    with ThreadPoolExecutor(8) as pool:
        for thread in [pool.submit(work, size) for size in (60, 30, 500, 10, 40, 99, 1, 70) * 5]:
            thread.result()
    assert done == 40 and 60 < most <= 100


def test_an_error_releases_the_pixels() -> None:
    budget = PixelBudget(10)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), budget.reserve(10):
            raise ZeroDivisionError
    with budget.reserve(10):
        pass


def test_a_request_that_waits_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAIT_SECONDS", 0.01)
    budget = PixelBudget(10)
    with budget.reserve(6):
        with pytest.raises(RefusedError) as caught, budget.reserve(6):
            pass
        assert (caught.value.status, caught.value.retry_after) == (503, 5)
        monkeypatch.setattr(module, "MAX_WAITING", 0)
        with pytest.raises(RefusedError), budget.reserve(1):
            pass


def test_an_image_larger_than_the_budget_is_decoded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAIT_SECONDS", 0.01)
    data = encoded(pixels(1), "JPEG2000")
    budget = PixelBudget(24 * 32)  # as many as the image has
    with budget.reserve(EncodedImage.of(data).work_pixels), pytest.raises(RefusedError), budget.reserve(1):
        pass


@pytest.mark.parametrize("word", ["a\r\nb", "\x1b[31m", "\u2028", "\u202egpj.exe", "half \ud83d", "x" * 1_000])
def test_an_error_is_one_printable_line(word: str) -> None:
    line = json.loads(error_response(422, f"key {word}: no such key").body)["error"]
    assert line.startswith("key ") and line.isprintable() and len(line) <= MAX_MESSAGE
