"""Untrusted text (titles, ids, queries) made safe to display: one line, bounded, without control characters.

The result moves no cursor, reverses no letters and starts no formula. Escaping of markup is left to the caller
(`rich.text.Text`, templates that escape).
"""

from __future__ import annotations

import re
import sys
from io import TextIOWrapper

MAX_CHARS = 200  # of a cell or a name
MAX_ERROR_CHARS = 4_000

# control characters, those that reverse or hide letters, and surrogates; not the joiners of emoji and scripts
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ud800-\udfff]"
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def plain(text: object, max_chars: int = MAX_CHARS) -> str:
    """Return a text in one line of at most `max_chars` characters, cut with an ellipsis."""
    words = str(text)
    is_cut = len(words) > max_chars
    words = " ".join(without_controls(words[: max_chars + 1]).split("\n")).replace("\t", " ")
    return f"{words[: max_chars - 1].rstrip()}…" if is_cut else words


def without_controls(text: str) -> str:
    """Replace control characters of a text by a mark; newlines and tabs stay."""
    return _UNSEEN.sub("\ufffd", text.replace("\r\n", "\n"))


def escape_unprintable() -> None:
    """Have stdout and stderr print characters that their encoding lacks as escapes: in a C locale "\\u2026" for "…"."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.encoding.lower() not in ("utf-8", "utf8"):
            stream.reconfigure(errors="backslashreplace")


def error_text(text: str) -> str:
    """Return an error message safe to print: it may quote untrusted files and ids."""
    shown = without_controls(text[:MAX_ERROR_CHARS])
    return shown if len(text) <= MAX_ERROR_CHARS else f"{shown}…"


def csv_cell(value: object) -> object:
    """Return a cell of a CSV file for people: an apostrophe before a text that a spreadsheet would run as a formula."""
    if not isinstance(value, str):
        return value
    text = without_controls(value) if not value.startswith(("\t", "\r")) else value
    is_formula = text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA)
    return f"'{text}" if is_formula and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
