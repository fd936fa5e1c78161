"""The lines of a CSV or JSONL file as text: compression and encoding are found out, or are what the user says.

A place and a TextFormat come in, TextLines go out; `text` reads its rows from them. What a file is, its first bytes
say: gzip, bzip2, xz, zstd and zip are unpacked whatever the file is called, and a byte order mark names its encoding.
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

MAX_LINE = 1 << 26  # characters: a packed file may hold far more than memory does
NUM_PEEKED = 4096  # bytes that tell UTF-16 without a byte order mark
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
DELIMITER_NAMES = {
    "tab": "\t",
    "\\t": "\t",
    "comma": ",",
    "semicolon": ";",
    "pipe": "|",
}  # easier to give than to quote
MARKS = (  # UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ENCODINGS = ("cp1252", "cp1250", "cp1251", "gb18030", "cp932", "euc_kr")  # what tables are saved in besides UTF-8
NUM_READINGS = 3  # that are offered of a text
EXCERPT = 20  # characters before and after the first that is not ASCII
_DAMAGED = (OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


@dataclass(frozen=True)
class TextFormat:
    """What the user says of a table's CSV and JSONL files.

    Args:
        encoding: as Python names it; None: UTF-8, or what the file's byte order mark says, which goes before it.
        delimiter: one character, or one of DELIMITER_NAMES; None: the one that the header speaks for.
        table: "products" or "queries", for errors.
    """

    encoding: str | None = None
    delimiter: str | None = None
    table: str = "products"

    def __post_init__(self) -> None:
        if self.encoding is not None and not _is_encoding(self.encoding):
            raise ValueError(f"{self.key('encoding')}={self.encoding}: no encoding; give one as cp1252 or utf-16")
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
        """Return what is not left to be found out."""
        said = {"encoding": self.encoding, "delimiter": self.separator}
        return {name: value for name, value in said.items() if value is not None}


@dataclass(frozen=True)
class TextLines:
    """The lines of one file, their ends kept; a byte that is none of the encoding comes as a lone surrogate."""

    place: PathOrUrl
    ending: str  # of the file itself, as ".csv" of "products.csv.gz"
    encoding: str
    is_guessed: bool  # there was neither a mark nor a word of the user's
    _file: IO[str]

    def __iter__(self) -> Iterator[str]:
        number = 0
        try:
            with self._file:
                while line := self._file.readline(MAX_LINE):
                    number += 1
                    if len(line) == MAX_LINE:
                        raise ValueError(f"{self.place}, row {number}: a line of more than {MAX_LINE:,} characters")
                    yield line.removeprefix("\ufeff") if number == 1 else line
        except UnicodeError as error:
            reason = getattr(error, "reason", str(error))
            raise ValueError(f"{self.place}, row {number + 1}: not {self.encoding} ({reason})") from error
        except _DAMAGED as error:
            raise _damaged(self.place, error) from error


def open_lines(place: PathOrUrl, settings: TextFormat) -> TextLines:
    """Open a text file.

    Raises:
        ValueError: it is packed and damaged, or a zip file of anything but one table.
    """
    try:
        ending, stream = _unpack(place, _buffered(open_binary(place)))
        head = stream.peek(NUM_PEEKED)[:NUM_PEEKED]
    except FileNotFoundError:
        raise
    except _DAMAGED as error:
        raise _damaged(place, error) from error
    marked = next((encoding for mark, encoding in MARKS if head.startswith(mark)), None)
    guessed = None if marked or settings.encoding else _guess_utf16(head)
    encoding = marked or settings.encoding or guessed or "utf-8"
    # what is not of the encoding is told by row, where it stands
    file = io.TextIOWrapper(stream, encoding, "surrogateescape", newline="")
    return TextLines(place, ending, encoding, guessed is not None, file)


def text_ending(place: PathOrUrl) -> str:
    """Return ".csv" of "products.csv.gz"; that of a zip file which does not say is ".zip"."""
    ending = suffix(place)
    if ending not in COMPRESSED:
        return ending
    return suffix(str(place).split("?")[0][: -len(ending)]) or (ending if ending == ".zip" else "")


def is_text(value: str) -> bool:
    """Was every byte of this one of the encoding's?"""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def advise_encoding(value: str, encoding: str, settings: TextFormat) -> str:
    """Say which encodings read what is none of `encoding`, and by which key."""
    name = encoding.upper().removesuffix("-SIG")
    data = value.encode(encoding.removesuffix("-sig"), "surrogateescape")
    readings = {choice: text for choice in ENCODINGS if (text := _decoded(data, choice)) is not None}
    # a word of another alphabet has hardly a letter of ours, and makes no word in a wrong encoding
    num_ascii, num_others = sum(byte < 128 and chr(byte).isalpha() for byte in data), sum(byte > 127 for byte in data)
    likely = {choice: text for choice, text in readings.items() if _is_words(text)}
    if num_others <= num_ascii and ENCODINGS[0] in likely:
        likely = {ENCODINGS[0]: likely[ENCODINGS[0]]}
    readings = likely or readings
    if not readings:
        return f"not {name}; give the encoding it was saved in by {settings.key('encoding')}=<encoding>"
    first, *others = islice(readings.items(), NUM_READINGS)
    further = "".join(f", {choice} as '{text}'" for choice, text in others)
    return f"not {name}; {settings.key('encoding')}={first[0]} reads it as '{first[1]}'{further}"


def _decoded(data: bytes, encoding: str) -> str | None:
    """Return an excerpt of a text around its first letter that is not ASCII, or None."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    first = next((place for place, letter in enumerate(text) if not letter.isascii()), 0)
    return " ".join(text[max(0, first - EXCERPT) : first + EXCERPT].split())


def _is_words(text: str) -> bool:
    """Is what is not ASCII here letters and the marks that go with them, rather than signs?"""
    kinds = (unicodedata.category(letter) for letter in text if not letter.isascii())
    return all(kind[0] in "LMPZ" or kind == "Sc" for kind in kinds)


def _is_encoding(name: str) -> bool:
    try:
        return "a".encode(name).decode(name) == "a" and codecs.lookup(name).name != "undefined"
    except (LookupError, UnicodeError, ValueError):
        return False


def _guess_utf16(head: bytes) -> str | None:
    """Return the kind of UTF-16 of a text whose every second byte is zero, as no other text's is."""
    first, second = head[0::2].count(0), head[1::2].count(0)
    if second > len(head) // 8 and not first:
        return "utf-16-le"
    return "utf-16-be" if first > len(head) // 8 and not second else None


def _unpack(place: PathOrUrl, stream: io.BufferedReader) -> tuple[str, io.BufferedReader]:
    """Return the ending of a file that may be packed, and its content."""
    ending, head = text_ending(place), stream.peek(8)
    if head.startswith(b"PK\x03\x04"):
        return _open_zip(place, stream)
    unpack = next((unpack for mark, unpack in UNPACKERS.items() if head.startswith(mark)), None)
    return ending, stream if unpack is None else _buffered(unpack(stream))


def _unpack_zstd(stream: IO[bytes]) -> Any:
    import pyarrow

    return pyarrow.input_stream(stream, compression="zstd")


UNPACKERS: dict[bytes, Callable[[Any], Any]] = {  # by a file's first bytes
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": _unpack_zstd,
}


def _open_zip(place: PathOrUrl, stream: IO[bytes]) -> tuple[str, io.BufferedReader]:
    archive = zipfile.ZipFile(stream)
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if any(info.filename.startswith("xl/") for info in infos):
        raise ValueError(f"{place}: an Excel workbook; save it as CSV (UTF-8)")
    # what begins with "_" or "." is what systems leave for themselves
    infos = [info for info in infos if not any(part.startswith(("_", ".")) for part in info.filename.split("/"))]
    if len(infos) != 1:
        names = ", ".join(info.filename for info in infos[:3])
        raise ValueError(f"{place}: a zip file of {len(infos)} files ({names}); unpack it, and give the folder")
    return suffix(infos[0].filename), _buffered(archive.open(infos[0]))


def _buffered(file: Any) -> io.BufferedReader:
    return file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)


def _damaged(place: PathOrUrl, error: BaseException) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{place}: damaged, or cut off ({reason})")
