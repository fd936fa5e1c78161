"""The lines of a CSV or JSONL file as text; compression and encoding are detected, or given by the user.

The first bytes of a file decide: gzip, bzip2, xz, zstd and zip are unpacked whatever the name of the file, and a byte
order mark names the encoding.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

from mim_lightning.io.paths import PathOrUrl, open_binary, suffix

MAX_LINE = 1 << 26  # characters: a compressed file may be far larger than memory
NUM_PEEKED = 4096  # bytes in which UTF-16 without a byte order mark is detected
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
# easier to give than to quote
DELIMITER_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
MARKS = (  # that of UTF-32 begins as that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ENCODINGS = ("cp1252", "cp1250", "cp1251", "gb18030", "cp932", "euc_kr")  # in which tables are saved besides UTF-8
NUM_SUGGESTIONS = 3  # encodings that an error offers
EXCERPT = 20  # characters before and after the first that is not ASCII
_DAMAGED = (OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


@dataclass(frozen=True)
class TextFormat:
    """Encoding and delimiter of a table's CSV and JSONL files.

    Args:
        encoding: Python's name of it; None: UTF-8. A byte order mark in the file overrides it.
        delimiter: one character, or one of DELIMITER_NAMES; None: detected in the header.
        table: "products" or "queries", for errors.
    """

    encoding: str | None = None
    delimiter: str | None = None
    table: str = "products"

    def __post_init__(self) -> None:
        if self.encoding is not None and not _is_encoding(self.encoding):
            raise ValueError(f"{self.key('encoding')}={self.encoding}: unknown; give one such as cp1252 or utf-16")
        if self.delimiter is not None and (len(self.separator or "") != 1 or (self.separator or "") in '"\r\n'):
            names = ", ".join(name for name in DELIMITER_NAMES if name.isalpha())
            raise ValueError(f"{self.key('delimiter')}={self.delimiter}: give one character, or {names}")

    @property
    def separator(self) -> str | None:
        """The delimiter itself."""
        return None if self.delimiter is None else DELIMITER_NAMES.get(self.delimiter, self.delimiter)

    def key(self, name: str) -> str:
        return f"data.source.{name}.{self.table}"

    def describe(self) -> dict[str, str]:
        """Return what is given rather than detected."""
        given = {"encoding": self.encoding, "delimiter": self.separator}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class TextLines:
    """The lines of one file with their line ends; a byte that is invalid in the encoding becomes a lone surrogate."""

    path: PathOrUrl
    suffix: str  # of the unpacked file, such as ".csv" of "products.csv.gz"
    encoding: str
    is_guessed: bool  # neither a byte order mark nor the user named the encoding
    _file: IO[str]

    def __iter__(self) -> Iterator[str]:
        number = 0
        try:
            with self._file:
                while line := self._file.readline(MAX_LINE):
                    number += 1
                    if len(line) == MAX_LINE:
                        raise ValueError(f"{self.path}, row {number}: a line of more than {MAX_LINE:,} characters")
                    yield line.removeprefix("\ufeff")  # also where another file was appended
        except UnicodeError as error:
            reason = getattr(error, "reason", str(error))
            raise ValueError(f"{self.path}, row {number + 1}: not {self.encoding} ({reason})") from error
        except _DAMAGED as error:
            raise _damaged(self.path, error) from error


def open_lines(path: PathOrUrl, settings: TextFormat) -> TextLines:
    """Open a text file.

    Raises:
        ValueError: its compressed data are damaged, or it is a zip file of anything but one table.
    """
    try:
        unpacked_suffix, stream = _unpack(path, _buffered(open_binary(path)))
        head = stream.peek(NUM_PEEKED)[:NUM_PEEKED]
    except FileNotFoundError:
        raise
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    marked = next((encoding for mark, encoding in MARKS if head.startswith(mark)), None)
    guessed = None if marked or settings.encoding else _guess_utf16(head)
    encoding = marked or settings.encoding or guessed or "utf-8"
    # invalid bytes are reported with their row
    file = io.TextIOWrapper(stream, encoding, "surrogateescape", newline="")
    return TextLines(path, unpacked_suffix, encoding, guessed is not None, file)


def text_suffix(path: PathOrUrl) -> str:
    """Return ".csv" of "products.csv.gz"; ".zip" of a zip file whose name has no other suffix."""
    outer = suffix(path)
    if outer not in COMPRESSED:
        return outer
    return suffix(str(path).split("?")[0][: -len(outer)]) or (outer if outer == ".zip" else "")


def is_text(value: str) -> bool:
    """Were all bytes of this text valid in its encoding?"""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def advise_encoding(value: str, encoding: str, settings: TextFormat) -> str:
    """Return a message that names the encodings in which a text that is not `encoding` is valid, and the key."""
    name = encoding.upper().removesuffix("-SIG")
    data = value.encode(encoding.removesuffix("-sig"), "surrogateescape")
    readings = {choice: text for choice in ENCODINGS if (text := _decoded(data, choice)) is not None}
    # a word of another alphabet has hardly an ASCII letter, and is not a word in a wrong encoding
    num_ascii, num_others = sum(byte < 128 and chr(byte).isalpha() for byte in data), sum(byte > 127 for byte in data)
    likely = {choice: text for choice, text in readings.items() if _is_words(text)}
    if num_others <= num_ascii and ENCODINGS[0] in likely:
        likely = {ENCODINGS[0]: likely[ENCODINGS[0]]}
    readings = likely or readings
    if not readings:
        return f"not {name}; give the encoding of the file by {settings.key('encoding')}=<encoding>"
    first, *others = islice(readings.items(), NUM_SUGGESTIONS)
    further = "".join(f", {choice} as '{text}'" for choice, text in others)
    return f"not {name}; {settings.key('encoding')}={first[0]} reads it as '{first[1]}'{further}"


def _decoded(data: bytes, encoding: str) -> str | None:
    """Return an excerpt of a text around its first letter that is not ASCII, or None."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    first = next((idx for idx, letter in enumerate(text) if not letter.isascii()), 0)
    return " ".join(text[max(0, first - EXCERPT) : first + EXCERPT].split())


def _is_words(text: str) -> bool:
    """Are all characters that are not ASCII letters, marks, punctuation or currency signs?"""
    kinds = (unicodedata.category(letter) for letter in text if not letter.isascii())
    return all(kind[0] in "LMPZ" or kind == "Sc" for kind in kinds)


def _is_encoding(name: str) -> bool:
    try:
        return "a".encode(name).decode(name) == "a" and codecs.lookup(name).name != "undefined"
    except (LookupError, UnicodeError, ValueError):
        return False


def _guess_utf16(head: bytes) -> str | None:
    """Return the byte order of a text in which every second byte is zero: only UTF-16 has that."""
    first, second = head[0::2].count(0), head[1::2].count(0)
    if second > len(head) // 8 and not first:
        return "utf-16-le"
    return "utf-16-be" if first > len(head) // 8 and not second else None


def _unpack(path: PathOrUrl, stream: io.BufferedReader) -> tuple[str, io.BufferedReader]:
    """Return the suffix and the content of a file that may be compressed."""
    head = stream.peek(8)
    if head.startswith(b"PK\x03\x04"):
        return _open_zip(path, stream)
    unpack = next((unpack for mark, unpack in UNPACKERS.items() if head.startswith(mark)), None)
    return text_suffix(path), stream if unpack is None else _buffered(unpack(stream))


def _unpack_zstd(stream: IO[bytes]) -> Any:
    import pyarrow

    return pyarrow.input_stream(stream, compression="zstd")


UNPACKERS: dict[bytes, Callable[[Any], Any]] = {  # by a file's first bytes
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": _unpack_zstd,
}


def _open_zip(path: PathOrUrl, stream: IO[bytes]) -> tuple[str, io.BufferedReader]:
    archive = zipfile.ZipFile(stream)
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if any(info.filename.startswith("xl/") for info in infos):
        raise ValueError(f"{path}: an Excel workbook; save it as CSV (UTF-8)")
    # names that begin with "_" or "." belong to the operating system
    infos = [info for info in infos if not any(part.startswith(("_", ".")) for part in info.filename.split("/"))]
    if len(infos) != 1:
        names = ", ".join(info.filename for info in infos[:3])
        raise ValueError(f"{path}: a zip file of {len(infos)} files ({names}); unpack it, and give the folder")
    return suffix(infos[0].filename), _buffered(archive.open(infos[0]))


def _buffered(file: Any) -> io.BufferedReader:
    return file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)


def _damaged(path: PathOrUrl, error: BaseException) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path}: damaged or incomplete ({reason})")
