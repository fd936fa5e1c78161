"""Inspection of single images: each kind of invalid file has its own finding, large images are never decoded."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mim_lightning.data.images.limits import MAX_FILE_BYTES, ImageLimits
from mim_lightning.data.validation import image_checks as module
from mim_lightning.data.validation.image_checks import image_properties, inspect_image
from tests.data.validation.broken import encoded, jpeg, jpeg_header, one_coloured, photo, png_header, resized


def distance(left: int, right: int) -> int:
    return (left ^ right).bit_count()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_valid_image_has_a_size_and_no_error(kind: str) -> None:
    data = encoded(photo(1, 90, 120), kind)
    facts = image_properties(data)
    assert (facts.num_bytes, facts.height, facts.width) == (len(data), 90, 120)
    assert facts.kind == "" and facts.reason == "" and facts.uniform_fraction < 0.5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_cut_files_are_reported_as_truncated(kind: str, kept: float) -> None:
    data = encoded(photo(2), kind)
    facts = image_properties(data[: int(len(data) * kept)])
    # a truncated WebP file cannot be distinguished from a damaged one
    assert facts.kind in ({"truncated_image"} if kind != "WEBP" else {"truncated_image", "unreadable_image"})
    assert facts.reason


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\xff\xd8 not really", b"GIF89a"])
def test_a_file_that_is_no_image_is_unreadable(data: bytes) -> None:
    facts = image_properties(data)
    assert facts.kind == "unreadable_image" and "\n" not in facts.reason


@pytest.mark.parametrize(
    "data",
    [png_header(50_000, 50_000), png_header(50_000, 1_500), png_header(10_000, 10_000), jpeg_header(60_000, 60_000)],
)
def test_bombs_are_refused_from_the_header(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "decode_upright", lambda *_: pytest.fail("pixels were decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own limit is another
        facts = image_properties(data)
    assert len(data) < 2_000 and facts.kind == "huge_image" and "pixels" in facts.reason


@pytest.mark.parametrize(("width", "kind"), [(100, ""), (101, "huge_image")])
def test_the_limit_is_one_of_pixels(width: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mim_lightning.data.images.codec.LIMITS", ImageLimits(pixels=10_000))
    assert image_properties(encoded(Image.new("L", (width, 100)), "PNG")).kind == kind


def test_files_too_large_for_images_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "film.jpg"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # no bytes on disk
    facts = inspect_image(path, lambda ref: pytest.fail("it was read"))
    assert facts.kind == "huge_image" and f"{MAX_FILE_BYTES + 1:,} bytes" in facts.reason


def test_errors_of_a_reader_are_one_line(tmp_path: Path) -> None:
    def fail(ref: object) -> bytes:
        raise OSError("status 404\n  not found")

    assert inspect_image("https://shop.example/a.jpg", fail).reason == "status 404 not found"
    facts = inspect_image(tmp_path / "gone.jpg", lambda ref: Path(str(ref)).read_bytes())
    assert (facts.kind, facts.reason) == ("unreadable_image", "no such file")


def test_no_file_ends_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> np.ndarray:
        raise IndexError("pop from\nan empty list")

    monkeypatch.setattr(module, "decode_upright", fail)
    facts = image_properties(jpeg(1))
    assert (facts.kind, facts.reason) == ("unreadable_image", "IndexError pop from an empty list")
    assert facts.height == 160


def test_one_color_is_a_fraction_of_the_pixels() -> None:
    assert image_properties(one_coloured()).uniform_fraction == 1.0
    pixels = np.full((128, 128, 3), 250, dtype=np.uint8)
    pixels[:32, :32] = 20  # a sixteenth
    assert image_properties(encoded(Image.fromarray(pixels), "PNG")).uniform_fraction == pytest.approx(
        15 / 16, abs=1e-4
    )
    ramp = np.repeat(np.linspace(0, 255, 128).astype(np.uint8)[None, :, None], 128, axis=0).repeat(3, axis=2)
    assert image_properties(encoded(Image.fromarray(ramp), "PNG")).uniform_fraction < 0.1


@pytest.mark.parametrize(
    ("scale", "kind", "quality"), [(1, "JPEG", 40), (0.4, "JPEG", 70), (1.3, "PNG", 0), (0.6, "WEBP", 50)]
)
def test_the_hash_survives_resizing_and_encoding(scale: float, kind: str, quality: int) -> None:
    for seed in range(5):
        first, other = image_properties(jpeg(seed)), image_properties(resized(jpeg(seed), scale, kind, quality))
        assert distance(first.perceptual_hash, other.perceptual_hash) <= 4
        assert distance(first.perceptual_hash, image_properties(jpeg(seed + 100)).perceptual_hash) > 8


def test_a_photo_is_hashed_upright() -> None:
    image = photo(3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    stored = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(stored, "JPEG", quality=95, exif=exif)
    turned, upright = image_properties(stored.getvalue()), image_properties(encoded(image))
    assert distance(turned.perceptual_hash, upright.perceptual_hash) <= 2
    assert (turned.height, turned.width) == (image.width, image.height)  # as stored
