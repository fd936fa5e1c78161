"""Every kind of image input gives the pixels of the evaluation, upright; invalid ones are named."""

import io
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mim_lightning.data.images.codec import normalize_encoding
from mim_lightning.data.images.transforms import eval_image
from mim_lightning.inference.image_inputs import BoxedImage, ImageInput, prepare_images
from mim_lightning.types import ImageSpec

SPEC = ImageSpec(size=(24, 24))
ORIENTATION = 0x0112


def prepared(image: ImageInput, max_side: int | None = 512) -> torch.Tensor:
    return prepare_images([image], SPEC, max_side, [0])[0]


def corners(width: int, height: int) -> Image.Image:
    """An image whose quarters differ, so that every turn of it is another one."""
    image = Image.new("RGB", (width, height), "white")
    for colour, (x, y) in {"red": (0, 0), "green": (1, 0), "blue": (0, 1)}.items():
        image.paste(colour, (x * width // 2, y * height // 2, (x + 1) * width // 2, (y + 1) * height // 2))
    return image


def encoded(image: Image.Image, kind: str = "JPEG", orientation: int | None = None) -> bytes:
    out, exif = io.BytesIO(), image.getexif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    image.save(out, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return out.getvalue()


def test_the_same_pixels_however_they_are_given(tmp_path: Path) -> None:
    image = corners(70, 50)
    data = encoded(image, "PNG")
    (tmp_path / "a.png").write_bytes(data)
    expected = eval_image(data, SPEC)
    assert expected.float().std() > 50
    for given in (data, tmp_path / "a.png", str(tmp_path / "a.png"), image, np.asarray(image)):
        assert torch.equal(prepared(given), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_as_prepare_stores_it(orientation: int) -> None:
    data = encoded(corners(90, 60), orientation=orientation)
    assert torch.equal(prepared(data), eval_image(normalize_encoding(data, 512), SPEC))
    turned = Image.open(io.BytesIO(data))
    # Pillow decodes chroma in its own way, and `prepare` compresses once more
    assert (prepared(turned).int() - prepared(data).int()).abs().float().mean() < 6


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_larger_than_stored_ones_differs_little(kind: str, orientation: int) -> None:
    data = encoded(corners(900, 600), kind, orientation=orientation)
    stored = eval_image(normalize_encoding(data, 128), SPEC)
    difference = (prepared(data, max_side=128).int() - stored.int()).abs()
    assert difference.float().mean() < 3
    if orientation != 1:
        assert (eval_image(data, SPEC).int() - stored.int()).abs().float().mean() > 30


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "I;16", "CMYK", "1"])
def test_pil_modes_are_those_of_the_file(mode: str) -> None:
    image = corners(64, 48)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8)
    elif mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize((64, 48)))
    else:
        image = image.convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    assert torch.equal(prepared(image), eval_image(data, SPEC))


def huge_png(width: int, height: int) -> bytes:
    """A header that promises more pixels than there are bytes in a gigabyte."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunk = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk + (0).to_bytes(4, "big") + b"IEND" + zlib.crc32(b"IEND").to_bytes(4, "big")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "image 1: not a readable image"),
        (b"no picture", "image 1: not a readable image"),
        (encoded(corners(90, 60))[:600], "image 1: (damaged|not a readable) image"),
        (huge_png(9_000, 9_000), "image 1: 9000 x 9000 pixels, at most 64,000,000"),
        (huge_png(50_000, 50_000), r"image 1: not a readable image \(Image size \(2500000000 pixels\) exceeds limit"),
        ("/nowhere/a.jpg", "image 1, /nowhere/a.jpg: no such file"),
        (np.zeros((4, 4), np.uint8), r"image 1: an array must be \(H, W, 3\) uint8 RGB, not \(4, 4\) uint8"),
        (np.zeros((4, 4, 3), np.float32), r"image 1: an array must be .* float32"),
        (np.zeros((0, 4, 3), np.uint8), r"image 1: an array must be"),
        (7, "image 1: give bytes, a path, a PIL image or an array, not int"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else type(value).__name__,
)
def test_a_file_that_is_no_image_is_named(image: ImageInput, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        prepare_images([corners(30, 30), image], SPEC, 512, [0, 1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_box_is_a_part_of_the_upright_image(orientation: int) -> None:
    """Its quarters differ: the top left one of the upright image is red whatever the file's orientation."""
    upright = corners(80, 60)
    turned = {1: 0, 3: 180, 6: 90, 8: 270}[orientation]  # the file holds the image turned back
    data = encoded(upright.rotate(turned, expand=True), "PNG", orientation)
    for box, expected in {
        (0, 0, 0.5, 0.5): (255, 0, 0),
        (0.5, 0, 1, 0.5): (0, 128, 0),
        (0.1, 0.6, 0.4, 0.9): (0, 0, 255),
    }.items():
        pixels = prepared(BoxedImage(data, box), max_side=16)
        assert pixels.reshape(3, -1).float().mean(1).round().tolist() == list(expected)


def test_a_box_is_decoded_with_the_pixels_that_it_needs() -> None:
    """A small part of a large photo has more detail than the same part of the photo as it would be stored."""
    fine = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (512, 512))  # a checkerboard of single pixels
    photo = Image.fromarray(np.repeat(fine[:, :, None], 3, 2))
    part = prepared(BoxedImage(encoded(photo, "PNG"), (0, 0, 24 / 1024, 24 / 1024)), max_side=64)
    assert part.float().std() > 100
    assert prepared(encoded(photo, "JPEG"), max_side=64).float().std() < 60


def test_a_sliver_is_refused_and_a_box_as_thin_as_rounding_has_a_pixel() -> None:
    photo = encoded(corners(300, 256), "PNG")
    with pytest.raises(ValueError, match=r"^image 0: the box has 300 x 1 pixels, one side is more than 100 times"):
        prepared(BoxedImage(photo, (0, 0.5, 1, 0.501)))
    thin = (139 / 300, 0.5, math.nextafter(139 / 300, 1), math.nextafter(0.5, 1))
    assert thin[0] * 300 == thin[2] * 300 == 139
    assert prepared(BoxedImage(photo, thin)).reshape(3, -1).float().std(1).max() == 0, "of a single pixel"


@pytest.mark.parametrize("box", [(0, 0, 0, 1), (0, 0, 1), (0.5, 0, 0.4, 1), (-0.1, 0, 1, 1), (0, 0, 1, float("nan"))])
def test_a_box_without_an_area_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"box=.*: give left, top, right and bottom as fractions of the image"):
        BoxedImage(b"", box)  # type: ignore[arg-type]
