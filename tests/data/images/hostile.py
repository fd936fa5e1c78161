"""Decompression bombs and other images that cost far more than their size."""

from __future__ import annotations

import io
import struct
import zlib

from tests.data.conftest import encoded, picture


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + -(-width // 8)))) if width * height < 1 << 27 else b""
    parts = (chunk(b"IHDR", head), *chunks, chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def shared_tags(num_tags: int, num_bytes: int) -> bytes:
    """Return a TIFF block whose tags all hold the same bytes."""
    tags = b"".join(struct.pack("<HHII", 0x8000 + n, 7, num_bytes, 8) for n in range(num_tags))
    return b"II*\0" + struct.pack("<IH", 8, num_tags) + tags + bytes(num_bytes)


def gif(comment: int) -> bytes:
    data = encoded(picture(1), "GIF")
    start = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    return data[:start] + b"!\xfe" + (b"\xff" + bytes(255)) * (comment // 256) + b"\0" + data[start:]


def avif_with_tags() -> bytes:
    data = encoded(picture(1), "AVIF")
    return data + shared_tags(100, 50_000)


def scanned(num_scans: int) -> bytes:
    """Return a progressive JPEG whose last scan is there again and again."""
    out = io.BytesIO()
    picture(1).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * num_scans + data[-2:]


def tiled(width: int, height: int, tile: int, again: tuple[int, ...] = ()) -> bytes:
    """Return a grey TIFF of one square tile; `again` are further values of the tile's sides."""
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(bytes(tile)) for _ in range(tile)) + packer.flush()
    facts = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile)]
    facts += [(tag, side) for side in again for tag in (322, 323)]
    start = 8 + 2 + 12 * (len(facts) + 2) + 4
    tags = b"".join(struct.pack("<HHII", *fact) for fact in ((tag, 4, 1, value) for tag, value in facts))
    tags += struct.pack("<HHII", 324, 4, 1, start) + struct.pack("<HHII", 325, 4, 1, len(pixels))
    return b"II*\0" + struct.pack("<IH", 8, len(facts) + 2) + tags + bytes(4) + pixels
