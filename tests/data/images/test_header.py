"""Decompression bombs are refused from the header, before anything is decoded."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from mim_lightning.data.images import header as module
from mim_lightning.data.images.codec import (
    EncodedImage,
    decode_image,
    decode_upright,
    image_size,
    normalize_encoding,
    upright_size,
)
from mim_lightning.data.images.header import (
    MAX_COMMENT,
    MAX_INTERPRETED,
    MAX_PARTS,
    is_in_scans,
    jpeg_orientation,
    png_notes,
    read_header,
)
from mim_lightning.data.images.limits import (
    LIMITS,
    ImageError,
    ImageLimits,
    ImageTooLargeError,
    TruncatedImageError,
    UnreadableImageError,
)
from tests.data.conftest import encoded, jpeg, picture
from tests.data.images.hostile import avif_with_tags, chunk, gif, png, scanned, shared_tags, tiled


def run_bmp(compression: int, depth: int) -> bytes:
    colors = bytes(4 << depth)
    info = struct.pack("<IiiHHIIiiII", 40, 2_000, 2_000, 1, depth, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<III", 0, 0, 54 + len(colors)) + info + colors + b"\1\0" * MAX_INTERPRETED


TOO_LARGE = {  # written when their test runs: some take long
    "one column": lambda: png(1, 40_000_000),
    "one row": lambda: png(40_000_000, 1),
    "a line": lambda: png(4, 60_000),
    "pixels": lambda: png(8_001, 8_000),
    "pixels beyond Pillow's limit": lambda: png(100_000, 100_000),
    "scans": lambda: scanned(LIMITS.scans),
    "png chunks": lambda: png(8, 8, *[chunk(b"tEXt", b"a\0b")] * (MAX_PARTS + 1)),
    "jpeg 2000 boxes": lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08free" * (MAX_PARTS + 1),
    "gif comment": lambda: gif(2 * MAX_COMMENT),
    "tiff tags": lambda: shared_tags(1_000, 100_000),
    "tiff tags of a header in the wrong order": lambda: b"II\0*" + shared_tags(1_000, 100_000)[4:],
    "avif tags": lambda: avif_with_tags(),
    "a tile": lambda: tiled(16, 16, 3_000),
    "qoi": lambda: b"qoif" + struct.pack(">IIBB", 2_000, 2_000, 3, 0) + bytes(MAX_INTERPRETED),
    "bits in digits": lambda: b"P1 2000 2000\n" + b"1" * MAX_INTERPRETED,
    "grey in digits": lambda: b"P2 2000 2000 255\n" + b"1 " * MAX_INTERPRETED,
    "colors in digits": lambda: b"P3 2000 2000 255\n" + b"1 " * MAX_INTERPRETED,
    "colors of an odd depth": lambda: b"P6 2000 2000 254\n" + bytes(MAX_INTERPRETED),
    "bmp in runs": lambda: run_bmp(1, 8),
    "bmp in short runs": lambda: run_bmp(2, 4),
}


@pytest.mark.parametrize("write", TOO_LARGE.values(), ids=TOO_LARGE)
def test_large_images_are_refused_before_decoding(write: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    data = write()

    def decoded(*_: object, **__: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(Image.Image, "load", decoded)
    monkeypatch.setattr("simplejpeg.decode_jpeg", decoded)
    for read in (image_size, decode_image, decode_upright, EncodedImage.of, lambda data: normalize_encoding(data, 512)):
        with pytest.raises(ImageTooLargeError) as caught:
            read(data)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["BMP", "PPM", "SGI"])
def test_a_large_image_of_a_fast_format_is_read(kind: str) -> None:
    data = encoded(Image.new("RGB", (700, 700)), kind)
    assert len(data) > MAX_INTERPRETED
    assert decode_image(data).shape == (700, 700, 3)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_compressed_text_is_not_unpacked(kind: bytes) -> None:
    data = png(8, 8, chunk(kind, b"a\0\0" + zlib.compress(bytes(1 << 26))))
    with pytest.raises(UnreadableImageError, match="too large"):
        image_size(data)


@pytest.mark.parametrize("kind", ["PPM", "JPEG2000", "GIF", "TIFF", "QOI", "TGA"])
def test_other_kinds_are_read_as_they_were(kind: str) -> None:
    data = encoded(picture(1), kind)
    with Image.open(io.BytesIO(data)) as image:
        assert (decode_image(data) == np.asarray(image.convert("RGB"))).all()


def test_a_ppm_with_a_comment_is_read_and_one_of_comments_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(1), "PPM")
    assert (decode_image(data.replace(b"P6\n", b"P6\n# drawn by hand\n", 1)) == decode_image(data)).all()
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    for comments in (b"#\n" * 10_000, b"#" + b"a" * 10_000):
        with pytest.raises(UnreadableImageError):
            image_size(b"P6\n" + comments)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF"])
def test_tags_that_share_their_bytes_cost_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads every tag of a block, and 600 KB of them become a gigabyte."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(1), kind, exif=exif)
    expected = decode_upright(data)
    assert expected.shape == (32, 24, 3)
    monkeypatch.setattr("PIL.Image.Image.getexif", lambda self: pytest.fail("all tags were read"))
    assert (decode_upright(data) == expected).all()


def test_a_service_may_be_stricter() -> None:
    for limits in (ImageLimits(pixels=700), ImageLimits(side=31), ImageLimits(aspect=1), ImageLimits(scans=5)):
        with pytest.raises(ImageTooLargeError):
            image_size(scanned(1), limits)
    assert image_size(scanned(1), ImageLimits(pixels=768, side=32, aspect=2, scans=30)) == (24, 32)


def test_a_preview_among_the_tags_is_no_scan() -> None:
    data = jpeg()
    preview = b"\xff\xe2" + struct.pack(">H", 60_002) + b"\xff\xda" * 30_000
    assert read_header(data[:2] + preview + data[2:]).num_scans == 1


def test_scans_of_a_progressive_jpeg_are_counted() -> None:
    data = jpeg()
    assert not is_in_scans(data) and is_in_scans(scanned(1)) and is_in_scans(b"\xff\xd8" + b"\xff\xe0\0\2" * 30_000)
    at = data.index(b"\xff\xda") + 4
    assert is_in_scans(data[:at] + b"\1" + data[at + 1 :])  # the first scan holds one component of three
    assert not is_in_scans(b"\xff\xd8") and not is_in_scans(b"")


def test_unbounded_segments() -> None:
    data = jpeg()
    assert jpeg_orientation(data[:2] + b"\xff\xe0\0\2" * (3 * MAX_PARTS) + data[2:]) == 1
    assert jpeg_orientation(b"\xff\xd8" + b"\xff" * 100_000) == 1


def test_an_avif_is_decoded_alone_whatever_size_it_says() -> None:
    data = encoded(picture(1), "AVIF")
    height, width = image_size(data)
    said = data.replace(struct.pack(">II", width, height), struct.pack(">II", 2, 2))
    assert image_size(said) == (2, 2)  # and its frame is as large as before
    assert EncodedImage.of(said).work_pixels == EncodedImage.of(data).work_pixels == 1 << 28


@pytest.mark.parametrize(("kind", "weight"), [("PNG", 1), ("TIFF", 1), ("GIF", 1), ("WEBP", 2), ("JPEG2000", 3)])
def test_memory_of_a_pixel_counts(kind: str, weight: int) -> None:
    assert EncodedImage.of(encoded(picture(1), kind)).work_pixels == 24 * 32 * weight
    assert EncodedImage.of(jpeg()).work_pixels == 24 * 32 // 4


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_is_found_among_the_tags(order: str) -> None:
    tags = struct.pack(f"{order}HHII", 0x010E, 2, 4, 0) + struct.pack(f"{order}HHIHH", 0x0112, 3, 1, 8, 0)
    block = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, 2) + tags
    data = jpeg()
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(block)) + b"Exif\0\0" + block
    assert jpeg_orientation(data[:2] + segment + data[2:]) == 8


def test_tiles_are_read_unless_two_readers_might_take_another_size() -> None:
    for data in (tiled(16, 16, 256), tiled(40, 900, 1_024)):
        assert decode_image(data).shape[:2] == image_size(data)
    for data in (tiled(16, 16, 3_000, again=(16,)), b"MM\0+" + tiled(16, 16, 16)[4:]):
        with pytest.raises(UnreadableImageError):
            image_size(data)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of a cut TIFF
@pytest.mark.parametrize("kind", ["QOI", "AVIF", "TIFF", "PCX", "TGA"])
def test_a_damaged_file_of_any_format_is_reported_as_damaged(kind: str) -> None:
    """Each plugin of Pillow raises exceptions of its own, such as an IndexError."""
    data = encoded(picture(1), kind)
    for end in range(16, len(data), max(1, len(data) // 40)):
        broken = data[:end] + b"\xff" + data[end + 1 :]
        for read in (image_size, decode_upright):
            for part in (data[:end], broken):
                try:
                    read(part)
                except ImageError as error:
                    assert "\n" not in str(error)


def test_a_rotated_tiff_is_rotated_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(1), "TIFF", exif=exif)
    assert decode_image(data).shape == decode_upright(data).shape == (32, 24, 3)


def test_tags_after_the_pixels_of_a_png_turn_its_sides() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(1), "PNG", exif=exif)
    start = data.index(b"eXIf") - 4
    tags = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
    end = len(data) - 12
    late = data[:start] + data[start + len(tags) : end] + tags + data[end:]
    for image in (data, late):
        assert upright_size(EncodedImage.of(image)) == decode_upright(image).shape[:2] == (32, 24)
    bare = data[:start] + data[start + len(tags) :]
    assert upright_size(EncodedImage.of(bare + tags)) == decode_upright(bare + tags).shape[:2] == (24, 32), (
        "after its end"
    )
    wrong = tags[:-4] + bytes(4)  # a checksum that nobody checks after the pixels
    late = late.replace(tags, wrong)
    assert upright_size(EncodedImage.of(late)) == decode_upright(late).shape[:2] == (32, 24)
    assert png_notes(data.replace(tags, wrong)).count(wrong) == 1, "before them it is refused as in decoding"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_file_is_distinguished_from_a_damaged_one(kind: str) -> None:
    data = encoded(picture(1, 200, 200), kind)
    with pytest.raises(TruncatedImageError):
        decode_image(data[: len(data) // 2])


def test_large_images_are_converted_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("RGBA", (37, 53), (200, 0, 0, 255))
    image.paste((10, 20, 30, 90), (5, 7, 20, 50))
    for data in (encoded(image, "PNG"), encoded(image.convert("P"), "PNG"), encoded(picture(1, 53, 37), "BMP")):
        expected = decode_image(data)
        monkeypatch.setattr("mim_lightning.data.images.codec.STRIP_PIXELS", 37 * 10)
        assert (decode_image(data) == expected).all()
        monkeypatch.undo()


@pytest.mark.parametrize("suffix", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\0\0\1\0\1\0"])
def test_formats_that_run_a_program_or_contain_several_images_are_rejected(suffix: bytes) -> None:
    with pytest.raises(UnreadableImageError, match="of no known format"):
        image_size(suffix + bytes(100))


def test_heic_is_read_or_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(100)
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(
        UnreadableImageError, match=r"HEIC image: install the extra: pip install 'mim-lightning\[heic\]'"
    ):
        image_size(data)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_images_that_browsers_may_not_read_are_stored_as_jpeg(kind: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif", reason="needs the extra heic").register_heif_opener()
    data = encoded(picture(1), kind)
    assert read_header(data) == module.ImageHeader(kind, 24, 32)
    stored = normalize_encoding(data, 512)
    assert stored[:2] == b"\xff\xd8"
    difference = decode_image(stored).astype(float) - np.asarray(picture(1), dtype=float)
    assert np.abs(difference).mean() < 20
