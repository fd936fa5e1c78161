"""Malformed images: bytes that are none, or damaged, or cost far more than their size; and sound ones of odd kinds."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.images.hostile import avif_with_tags, chunk, gif, png, scanned, shared_tags, tiled
from tests.data.validation.broken import jpeg_header, photo, png_header


@dataclass(frozen=True)
class BadImage:
    """Encoded bytes, or what makes them, with what is wrong; `is_sound`: it is odd, and to be read all the same."""

    wrong: str
    data: bytes | Callable[[], bytes]
    is_sound: bool = False

    def write(self, path: Path) -> None:
        path.write_bytes(self.data if isinstance(self.data, bytes) else self.data())


def saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    photo(1).convert(mode).save(out, kind, **options)
    return out.getvalue()


def changed(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


def without(data: bytes, marker: bytes) -> bytes:
    """Return a JPEG without its first segment of a kind."""
    at = data.index(marker)
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def frame(data: bytes, offset: int, value: bytes, marker: bytes = b"\xff\xc0") -> bytes:
    """Return a JPEG with other bytes in the header of its frame: 4 bits, 5 height, 7 width, 9 components."""
    at = data.index(marker) + offset
    return data[:at] + value + data[at + len(value) :]


def ihdr(data: bytes, offset: int, value: bytes) -> bytes:
    """Return a PNG with other bytes in its header, whose checksum fits: 0 width, 4 height, 8 bits, 9 color type."""
    head = data[16:29]
    head = head[:offset] + value + head[offset + len(value) :]
    return data[:8] + chunk(b"IHDR", head) + data[33:]


def animation(kind: str) -> bytes:
    out = io.BytesIO()
    photo(1).save(out, kind, save_all=True, append_images=[photo(2), photo(3)], duration=50)
    return out.getvalue()


def wide_gray() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(60 * 80, dtype=np.uint16).reshape(60, 80) * 13).save(out, "PNG")
    return out.getvalue()


JPEG, PNG, WEBP, GIF = saved("JPEG"), saved("PNG"), saved("WEBP"), saved("GIF", "P")
PROGRESSIVE, CMYK = saved("JPEG", progressive=True), saved("JPEG", "CMYK")
TIFF, BMP, AVIF = saved("TIFF"), saved("BMP"), saved("AVIF")
ALL = {"JPEG": JPEG, "PNG": PNG, "WebP": WEBP, "GIF": GIF, "TIFF": TIFF, "BMP": BMP, "AVIF": AVIF}
SCAN = JPEG.index(b"\xff\xda")
CASES = [
    BadImage("nothing", b""),
    BadImage("one byte", b"\xff"),
    BadImage("text", b"not an image"),
    BadImage("NULs", bytes(4096)),
    BadImage("page of HTML", b"<!DOCTYPE html><html>403 Forbidden</html>"),
    BadImage("SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
    BadImage("PDF", b"%PDF-1.7\n1 0 obj\n"),
    BadImage("PostScript that runs", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file\n"),
    BadImage("icon", saved("ICO")),
    BadImage("video", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(64)),
    BadImage("base64 of an image", b"/9j/4AAQSkZJRgABAQAAAQABAAD"),
    *(BadImage(f"{kind} cut off after 12 bytes", data[:12]) for kind, data in ALL.items()),
    *(BadImage(f"{kind} cut off in the middle", data[: len(data) // 2]) for kind, data in ALL.items()),
    BadImage("JPEG cut off after its start", JPEG[:2]),
    BadImage("JPEG cut off before its pixels", JPEG[:SCAN]),
    BadImage("JPEG without its tables of quantization", without(without(JPEG, b"\xff\xdb"), b"\xff\xdb")),
    BadImage("JPEG without its Huffman tables", without(without(without(without(JPEG, b"\xff\xc4"), b"\xff\xc4"), b"\xff\xc4"), b"\xff\xc4"), is_sound=True),
    BadImage("JPEG without its frame", without(JPEG, b"\xff\xc0")),
    BadImage("JPEG of 0 x 0", frame(JPEG, 5, bytes(4))),
    BadImage("JPEG of no height", frame(JPEG, 5, bytes(2))),
    BadImage("JPEG of 65,500 x 65,500", jpeg_header(65_500, 65_500)),
    BadImage("JPEG with a height ten times its pixels", frame(JPEG, 5, struct.pack(">H", 1600))),
    BadImage("JPEG of 12 bits", frame(JPEG, 4, b"\x0c")),
    BadImage("JPEG of 200 components", frame(JPEG, 9, b"\xc8")),
    BadImage("JPEG of arithmetic coding in a frame of Huffman", changed(JPEG, b"\xff\xc0", b"\xff\xc9")),
    BadImage("JPEG of a lossless frame", changed(JPEG, b"\xff\xc0", b"\xff\xc3")),
    BadImage("JPEG with a second frame", JPEG[:SCAN] + JPEG[JPEG.index(b"\xff\xc0") : SCAN] + JPEG[SCAN:]),
    BadImage("JPEG with a segment longer than the file", JPEG[:2] + b"\xff\xe1\xff\xff" + JPEG[2:]),
    BadImage("JPEG with a segment of length 0", JPEG[:2] + b"\xff\xe1\0\0" + JPEG[2:], is_sound=True),
    BadImage("JPEG of 200 scans", scanned(200)),
    BadImage("JPEG of 30,000 empty segments", JPEG[:2] + b"\xff\xe2\0\2" * 30_000 + JPEG[2:], is_sound=True),
    BadImage("progressive JPEG cut off after its first scan", PROGRESSIVE[: PROGRESSIVE.index(b"\xff\xda") + 200]),
    BadImage("JPEG in CMYK cut off", CMYK[: len(CMYK) // 2]),
    BadImage("JPEG in CMYK", CMYK, is_sound=True),
    BadImage("JPEG with tags that lead to themselves", JPEG[:2] + b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0" + JPEG[2:], is_sound=True),
    BadImage("JPEG with orientation 77", JPEG[:2] + b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x4d\0\0\0\0\0\0\0" + JPEG[2:], is_sound=True),
    BadImage("JPEG with bytes after its end", JPEG + b"PK\3\4 and more", is_sound=True),
    BadImage("PNG of 1 x 40,000,000", png_header(1, 40_000_000)),
    BadImage("PNG of 100,000 x 100,000", png_header(100_000, 100_000)),
    BadImage("PNG of 0 x 0", ihdr(PNG, 0, bytes(8))),
    BadImage("PNG of 2**31 - 1 pixels a side", ihdr(PNG, 0, b"\x7f\xff\xff\xff" * 2)),
    BadImage("PNG that is wider than its pixels", ihdr(PNG, 0, struct.pack(">I", 2000))),
    BadImage("PNG of 3 bits", ihdr(PNG, 8, b"\3")),
    BadImage("PNG of color type 5", ihdr(PNG, 9, b"\5")),
    BadImage("PNG with a palette that is missing", ihdr(PNG, 9, b"\3")),
    BadImage("PNG of compression 9", ihdr(PNG, 10, b"\t"), is_sound=True),
    BadImage("PNG with a wrong checksum", PNG[:29] + bytes(4) + PNG[33:]),
    BadImage("PNG without its pixels", PNG[:33] + chunk(b"IEND", b"")),
    BadImage("PNG with pixels that are not compressed", PNG[:33] + chunk(b"IDAT", b"x" * 100) + chunk(b"IEND", b"")),
    BadImage("PNG with too few pixels", PNG[:33] + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")),
    BadImage("PNG with a chunk of 4 GB", PNG[:33] + b"\xff\xff\xff\xffIDAT"),
    BadImage("PNG of 30,000 chunks", png(8, 8, *[chunk(b"tEXt", b"a\0b")] * 30_000)),
    BadImage("PNG with a text of 64 MB in 64 kB", lambda: png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26))))),
    BadImage("PNG of 16 bits", wide_gray(), is_sound=True),
    BadImage("WebP with a wrong size in its header", WEBP[:4] + struct.pack("<I", 2**31) + WEBP[8:]),
    BadImage("WebP of no known chunk", WEBP[:12] + b"VP9 " + WEBP[16:]),
    BadImage("animated WebP cut off", animation("WEBP")[:-400]),
    BadImage("animated WebP", animation("WEBP"), is_sound=True),
    BadImage("animated GIF", animation("GIF"), is_sound=True),
    BadImage("GIF of 65,535 x 65,535", GIF[:6] + b"\xff\xff\xff\xff" + GIF[10:]),
    BadImage("GIF with megabytes of comments", gif(2 << 20)),
    BadImage("GIF without a frame", GIF[:13] + b";"),
    BadImage("TIFF with tags that lead to themselves", b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
    BadImage("TIFF with more tags than bytes", shared_tags(200, 50_000)),
    BadImage("TIFF of tiles larger than the image", lambda: tiled(16, 16, 8192)),
    BadImage("TIFF with offsets beyond the file", TIFF[:4] + struct.pack("<I", 2**31) + TIFF[8:]),
    BadImage("BMP with an offset beyond the file", BMP[:10] + struct.pack("<I", 2**31 - 1) + BMP[14:]),
    BadImage("BMP of a negative width", BMP[:18] + struct.pack("<i", -200) + BMP[22:]),
    BadImage("BMP of 2 billion rows", BMP[:22] + struct.pack("<i", 2**31 - 1) + BMP[26:]),
    BadImage("AVIF with tables of tags", avif_with_tags()),
    BadImage("PPM without a size", b"P6\n"),
    BadImage("PPM of a negative size", b"P6\n-5 -5\n255\n" + bytes(75)),
    BadImage("PPM of 10**20 pixels", b"P6\n10000000000 10000000000\n255\n"),
    BadImage("PPM with an endless header", b"P6\n" + b"#" * 100_000),
]  # fmt: skip
