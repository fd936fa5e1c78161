"""Invalid images, built byte by byte, and a shop whose rows contain them."""

from __future__ import annotations

import csv
import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from mim_lightning.data.images.reader import ImageReader
from mim_lightning.data.manifest.manifest import Manifest, ManifestSource
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.validation.validate import validate_manifest
from mim_lightning.data.validation.validation_report import ValidationReport

PRODUCT = {"product_id": "", "image": "", "title": "", "description": "", "category": ""}
QUERY = {"query_id": "", "split": "train", "image": "", "text": "", "product_id": ""}


def photo(seed: int, height: int = 160, width: int = 200) -> Image.Image:
    """Return soft shapes with a little noise, as different from each other as photos are."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray((pixels + rng.integers(-6, 7, pixels.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", quality: int = 95) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **({} if kind == "PNG" else {"quality": quality}))
    return out.getvalue()


def jpeg(seed: int) -> bytes:
    return encoded(photo(seed), quality=90)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that says it is `width` x `height`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    """Return a small JPEG whose header says it is `width` x `height`."""
    data = bytearray(encoded(Image.new("RGB", (8, 8), "red")))
    place = data.index(b"\xff\xc0") + 5  # frame header: length, bits, then height and width
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def one_coloured(noise: int = 2) -> bytes:
    pixels = 200 + np.random.default_rng(0).integers(-noise, noise + 1, (90, 120, 3))
    return encoded(Image.fromarray(pixels.astype(np.uint8)))


def resized(data: bytes, scale: float = 0.5, kind: str = "JPEG", quality: int = 60) -> bytes:
    """Return the same image, smaller and stored otherwise."""
    image = Image.open(io.BytesIO(data))
    size = round(image.width * scale), round(image.height * scale)
    return encoded(image.resize(size, Image.Resampling.LANCZOS), kind, quality=quality)


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_shop(
    folder: Path,
    pictures: Mapping[str, bytes],
    products: list[dict[str, str]],
    queries: list[dict[str, str]],
) -> tuple[Manifest, list[RowIssue]]:
    """Write images and tables, and read them as the check does."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    products_path = write_csv(folder / "products.csv", [PRODUCT | row for row in products])
    queries_path = write_csv(folder / "queries.csv", [QUERY | row for row in queries])
    faults: list[RowIssue] = []
    source = ManifestSource(str(products_path), str(queries_path))
    return source.read(folder / "work", faults.append), faults


def check(manifest: Manifest, faults: list[RowIssue], **settings: object) -> ValidationReport:
    chosen = ValidationSettings(**{"num_processes": 1, **settings})  # type: ignore[arg-type]
    return validate_manifest(manifest, faults, chosen, ImageReader().read)


def summarize(report: ValidationReport) -> set[tuple[str, str, str, str, str]]:
    """Return every finding as (kind, table, row, id, drops)."""
    return {(f.kind, f.table, report.row_of(f), f.row_id, f.drops) for f in report.findings}
