"""The header of an encoded image: format, size, scans and orientation, without decoding a pixel.

Files may be hostile: every loop is bounded, and what Pillow reads while it opens a file (tags, comments, chunks) is
checked first.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

from mim_lightning.data.images.limits import LIMITS, ImageTooLargeError, TruncatedImageError, UnreadableImageError

JPEG_MAGIC = b"\xff\xd8"
ORIENTATION_TAG = 0x0112
# formats that Pillow decodes itself, at the size in their header. Not those that start another program (EPS), are drawn
# (WMF), or contain images of several sizes (ICO, ICNS); JPEG is simplejpeg's
PILLOW_FORMATS = (
    *("PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI", "SGI", "PCX", "PSD", "TGA"),
)
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
MAX_PARTS = 20_000  # segments of a JPEG before its pixels, chunks of a PNG
MAX_COMMENT = 1 << 20  # bytes of a GIF's comments
MAX_PNM = 4096  # bytes of the header of a PPM and similar formats, which Pillow reads byte by byte
MAX_TAG_BLOCKS = 64  # byte sequences in a file that look like a table of tags
MAX_INTERPRETED = 1 << 20  # bytes of a file that Pillow decodes in Python, while no other thread runs
MAX_TILE = 1 << 22  # pixels of a TIFF's tile that is larger than the image: each tile is decoded whole

_SCAN, _END, _EXIF, _XMP = b"\xff\xda", b"\xff\xd9", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_FIRST_SCAN = 0xDA
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # these are tables
_PADDING = re.compile(rb"\xff+")
_NEXT_MARKER = re.compile(rb"\xff+([\x02-\xcf\xda-\xfe])")  # none that occurs among the bytes of a scan
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
_PNM = re.compile(rb"P[1-7fFy]\S*(?:(?:\s|#[^\r\n]*[\r\n])+[^\s#]+){2}")
_TAG_BLOCK = re.compile(rb"II\*\0|II\0\*|MM\0\*|MM\*\0|II\+\0|MM\0\+")  # also with the number in the wrong byte order
_TAG_SIZES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)  # bytes of a value, by TIFF type
_SIDES, _UNSIGNED = (256, 257, 322, 323), {3: 2, 4: 4}  # tags of the sides of image and tiles; bytes by type
_PNG_NOTES = (b"IHDR", b"eXIf", b"tEXt", b"zTXt", b"iTXt")
_NO_PIXELS = b"\0\0\0\0IDAT5\xaf\x06\x1e\0\0\0\0IEND\xaeB`\x82"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


@dataclass(frozen=True)
class ImageHeader:
    """Properties of an image that is not decoded."""

    kind: str  # "JPEG", or Pillow's name of the format
    height: int
    width: int
    num_scans: int = 1  # of a JPEG; a lower bound if there are more than LIMITS allow
    is_in_scans: bool = False  # of a JPEG, see `is_in_scans`


def read_header(data: bytes) -> ImageHeader:
    """Parse the header of an encoded image.

    Raises:
        UnreadableImageError: not an image, or in a format that is not read.
        ImageTooLargeError: its tags, comments or chunks are too many to read.
    """
    if data[:2] == JPEG_MAGIC:
        try:
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
        except ValueError as error:
            raise UnreadableImageError(f"not a readable image ({reason_of(error)})") from error
        in_scans = is_in_scans(data)  # else there is one: counting reads the whole file
        return ImageHeader("JPEG", height, width, _count_scans(data) if in_scans else 1, in_scans)
    with open_image(data) as image:
        return ImageHeader(image.format or "", image.height, image.width)


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Open an image that is not a JPEG with Pillow; nothing is decoded yet.

    Raises:
        UnreadableImageError, ImageTooLargeError: see `read_header`.
    """
    formats: tuple[str, ...] = PILLOW_FORMATS
    if is_heif(data):
        _register_heif()
        formats = ("HEIF",)
    _validate_parts(data)
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"not a readable image ({reason_of(error)})") from error
    except Exception as error:  # each plugin has error classes of its own; libavif raises RuntimeError
        kind = TruncatedImageError if is_cut_off(data) else UnreadableImageError
        raise kind(f"not a readable image ({reason_of(error)})") from error
    if len(data) > MAX_INTERPRETED and _is_interpreted(image):
        raise ImageTooLargeError(
            f"{len(data):,} bytes of a slow variant of {image.format}, of which at most {MAX_INTERPRETED:,} are read; "
            "save it as PNG"
        )
    return image


def _is_interpreted(image: ImageFile.ImageFile) -> bool:
    """Does Pillow decode it in Python? So it does QOI, PNM in digits or of odd depths, run-length BMP."""
    # 16-bit SGI is decoded in whole bands
    return any(part[0] in Image.DECODERS and part[0] != "SGI16" for part in image.tile)


def is_heif(data: bytes) -> bool:
    """Is it a HEIC image, as iPhones take them? AVIF is another format in the same container."""
    brands = data[8 : max(16, min(int.from_bytes(data[:4], "big"), 256))]
    return data[4:8] == b"ftyp" and b"avif" not in brands and b"avis" not in brands and brands[:4] in HEIF_BRANDS


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise UnreadableImageError(
            "not a readable image (a HEIC image: install the extra: pip install 'mim-lightning[heic]')"
        ) from error
    register_heif_opener()


def reason_of(error: Exception) -> str:
    """Return the message of a decoder in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "of no known format"  # Pillow names the buffer it read
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def is_cut_off(data: bytes) -> bool:
    """Does the file end before the image does, as far as the format shows it?"""
    if data[:2] == JPEG_MAGIC:
        return data.rfind(_END) < data.rfind(_SCAN)
    if data[:4] == b"RIFF":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    return data[:4] == b"\x89PNG" and b"IEND" not in data[-(1 << 16) :]


def jpeg_orientation(data: bytes) -> int:
    """Return the EXIF orientation of a JPEG, 1 (upright) if there is none that can be read."""
    exif, xmp = b"", b""
    for kind, start, stop in _segments(data):
        if kind == 0xE1 and data.startswith(_EXIF, start) and not exif:
            exif = data[start:stop]
        elif kind == 0xE1 and data.startswith(_XMP, start):
            xmp = data[start:stop]
    return _orientation(exif, xmp)


def png_notes(data: bytes) -> bytes:
    """Return a PNG without pixels that has the same notes: of those after the pixels Pillow knows once it decoded."""
    at, kept, is_after_pixels = 8, [data[:8]], False
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IEND":
            break
        is_after_pixels |= kind == b"IDAT"
        if kind in _PNG_NOTES and at + 12 + length <= len(data):
            part, checksum = data[at : at + 8 + length], data[at + 8 + length : at + 12 + length]
            # after the pixels Pillow reads notes whatever their checksum; before them it refuses a wrong one
            kept += [part, zlib.crc32(part[4:]).to_bytes(4, "big") if is_after_pixels else checksum]
        at += 12 + length
    return b"".join([*kept, _NO_PIXELS])


def image_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image that Pillow has loaded (which has rotated a TIFF itself)."""
    # not getexif(): tags that share their bytes become gigabytes there
    exif, xmp = image.info.get("exif") or b"", image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    if not exif and isinstance(profile := image.info.get("Raw profile type exif"), str):
        digits = "".join(profile.split("\n")[3:])
        exif = bytes.fromhex(digits) if re.fullmatch(r"([0-9a-fA-F]{2})*", digits) else b""
    return 1 if image.format == "TIFF" else _orientation(exif, xmp.encode() if isinstance(xmp, str) else xmp)


def is_in_scans(data: bytes) -> bool:
    """Does a JPEG come in several passes, so that its coefficients are all held until the last of them is read?"""
    num_parts = 0
    for kind, start, _ in _segments(data):
        if kind in _FRAMES:
            if kind in _PROGRESSIVE:
                return True
            num_parts = data[start + 5] if start + 5 < len(data) else 0
        elif kind == _FIRST_SCAN:
            return start < len(data) and data[start] < num_parts
    return True  # too many segments to know


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield kind, start and end of a JPEG's segments, up to the header of the first scan."""
    at = 2
    for _ in range(MAX_PARTS):
        if data[at : at + 2] == b"\xff\xff" and (padding := _PADDING.match(data, at)):
            at = padding.end() - 1
        if data[at : at + 1] != b"\xff" or at + 4 > len(data) or data[at + 1] == 0xD9:
            yield _FIRST_SCAN, len(data), len(data)
            return
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        yield kind, at + 4, at + 2 + length
        if kind == _FIRST_SCAN:
            return
        at += 2 + max(2, length)


def _count_scans(data: bytes) -> int:
    # in a scan the two bytes occur only as a marker, but a preview in the tags may contain them
    count = data.count(_SCAN)
    if count <= LIMITS.scans:
        return count
    count, at = 0, 2
    while count <= LIMITS.scans and (marker := _NEXT_MARKER.search(data, at)):
        if marker[1] == b"\xd9":
            break
        count += marker[1] == b"\xda"
        at = marker.end()
        if marker[1] != b"\xd8":
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return count


def _orientation(exif: bytes, xmp: bytes) -> int:
    found = _tagged_orientation(exif.removeprefix(_EXIF))
    if found is None and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else 1


def _tagged_orientation(block: bytes) -> int | None:
    order, found = {b"II": "<", b"MM": ">"}.get(block[:2]), None
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (num_tags,) = struct.unpack_from(f"{order}H", block, start)
        for at in range(start + 2, start + 2 + 12 * num_tags, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", block, at)
            if tag == ORIENTATION_TAG and count == 1 and kind in (1, 3, 4):
                (found,) = struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], block, at + 8)
    except struct.error:  # a truncated block does no harm to the pixels
        pass
    return found


def _validate_parts(data: bytes) -> None:
    """Reject a file that Pillow would take far more time or memory to open than it has bytes."""
    if data[:4] == b"\x89PNG":
        _validate_png_chunks(data)
    elif data[:12] == _JP2:
        _validate_jp2_boxes(data)
    elif data[:1] == b"P" and not _PNM.match(data[:MAX_PNM]):
        raise UnreadableImageError("not a readable image (of no known format)")
    elif data[:3] == b"GIF":
        _validate_gif_comments(data)
    elif _TAG_BLOCK.match(data) or data[4:8] == b"ftyp":
        if data[4:8] != b"ftyp":
            _validate_tiff_tiles(data)
        for number, block in enumerate(_TAG_BLOCK.finditer(data)):
            if number == MAX_TAG_BLOCKS or _tagged_bytes(data, block.start()) > 2 * len(data):
                raise ImageTooLargeError("its tags hold more bytes than the file; not read")
            if data[4:8] != b"ftyp":
                return


def _validate_png_chunks(data: bytes) -> None:
    at = 8
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            return
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise ImageTooLargeError(f"more than {MAX_PARTS:,} chunks in a PNG; not read")


def _validate_jp2_boxes(data: bytes) -> None:
    at = 0
    for _ in range(MAX_PARTS):
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        if length < 8:  # the last
            return
        at += length
    raise ImageTooLargeError(f"more than {MAX_PARTS:,} boxes in a JPEG 2000; not read")


def _validate_gif_comments(data: bytes) -> None:
    """Reject long comments: Pillow appends blocks of 255 bytes one by one, copying the comment each time."""
    at = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0)
    start = at
    while data[at : at + 1] == b"!" and at - start <= MAX_COMMENT:
        at += 2
        while at < len(data) and data[at] and at - start <= MAX_COMMENT:
            at += 1 + data[at]
        at += 1
    if at - start > MAX_COMMENT:
        raise ImageTooLargeError(f"more than {MAX_COMMENT:,} bytes of comments in a GIF; not read")


def _tagged_bytes(data: bytes, base: int) -> int:
    """Return the bytes that a table of tags refers to; several tags may refer to the same bytes."""
    return sum(
        count * (_TAG_SIZES[kind] if kind < len(_TAG_SIZES) else 0) for _, kind, count, _ in _tags_at(data, base)
    )


def _validate_tiff_tiles(data: bytes) -> None:
    """Reject a TIFF with tiles far larger than the image: each tile is decoded whole."""
    if data[:4] == b"MM\0+":  # Pillow and libtiff read it differently
        raise UnreadableImageError("not a readable image (a big-endian BigTIFF)")
    sides = dict.fromkeys(_SIDES, 0)
    for tag, kind, count, at in _tags_at(data, 0):
        if tag in _SIDES:
            num_bytes = _UNSIGNED.get(kind, 0)
            if sides[tag] or not num_bytes or count != 1:  # Pillow and libtiff need not use the same value
                raise UnreadableImageError("not a readable image (a TIFF with two sizes, or one of an odd type)")
            sides[tag] = int.from_bytes(data[at : at + num_bytes], "little" if data[:2] == b"II" else "big")
    width, height, tile_width, tile_height = sides.values()
    if tile_width * tile_height > max(MAX_TILE, 2 * width * height):
        raise ImageTooLargeError(
            f"tiles of {tile_width} x {tile_height} pixels for an image of {width} x {height}; not read"
        )


def _tags_at(data: bytes, base: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, type, count of values and position of the value (or of its offset) of each tag of a TIFF."""
    # as Pillow, which reads a big-endian BigTIFF as a plain one
    order, is_big = "<" if data[base : base + 2] == b"II" else ">", data[base + 2 : base + 3] == b"+"
    offset, number, entry, step = ("Q", "Q", "HHQ", 20) if is_big else ("I", "H", "HHI", 12)
    try:
        (start,) = struct.unpack_from(order + offset, data, base + (8 if is_big else 4))
        (num_tags,) = struct.unpack_from(order + number, data, base + start)
        first = base + start + struct.calcsize(order + number)
        for at in range(first, min(first + step * num_tags, len(data)), step):
            tag, kind, count = struct.unpack_from(order + entry, data, at)
            yield tag, kind, count, at + struct.calcsize(order + entry)
    except struct.error:
        pass
