"""Untrusted text is printed as one bounded line without control characters."""

from __future__ import annotations

import csv
import io

import pytest
from PIL import ImageFont
from rich.console import Console
from rich.text import Text

from mim_lightning.display.pil_text import cut, font, wrap
from mim_lightning.display.text import csv_cell, error_text, plain, without_controls

HOSTILE = (
    "Mug [/red]",
    "[bold]x[/bold] \\",
    "\x1b[31mred\x1b[0m \x9b2J \x07",
    "abc\u202egpj.exe\u2066",
    "two\nlines\r\nand\ttabs\x0b\x85\u2028",
    "half \ud83d of a pair",
    "x" * 100_000,
    "\u0301" * 100_000,
)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_one_bounded_line_that_a_terminal_does_not_obey(text: str) -> None:
    shown = plain(text, 80)
    assert len(shown) <= 80 and shown.isprintable() | ("\u0301" in shown)
    shown.encode()
    out = io.StringIO()
    Console(file=out, width=100, force_terminal=True, color_system=None).print(Text(shown), soft_wrap=True)
    assert out.getvalue() == f"{shown}\n"


def test_harmless_text_is_unchanged() -> None:
    for text in ("Tasse, blau", "R&D a < b", "قهوة", "👩\u200d👧 नमस्\u200dते", "x" * 80, ""):
        assert plain(text, 80) == text
    assert plain("x" * 81, 80) == "x" * 79 + "…"
    assert plain(None) == "None" and plain(3.5) == "3.5"
    assert without_controls("a\n\tb") == "a\n\tb"
    assert error_text("a" * 5_000).endswith("a…")


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\t=1"),
        ("  =1", "'  =1"),
        ("\n=1", "'\n=1"),
        ("\xa0\u3000=1", "'\xa0\u3000=1"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("-0.25", "-0.25"),
        ("+1e3", "+1e3"),
        ("mug = cup", "mug = cup"),
        (-3, -3),
        (None, None),
    ],
)
def test_no_cell_is_a_formula(text: object, cell: object) -> None:
    assert csv_cell(text) == cell
    out = io.StringIO()
    csv.writer(out).writerow([csv_cell(text)])
    assert next(csv.reader(io.StringIO(out.getvalue())))[0] == ("" if cell is None else str(cell))


def test_a_title_of_100_000_letters_is_cut_without_measuring_it(monkeypatch: pytest.MonkeyPatch) -> None:
    face, longest = font(15), 0
    measure = face.getlength

    def counted(text: str) -> float:
        nonlocal longest
        longest = max(longest, len(text))
        return measure(text)

    monkeypatch.setattr(ImageFont.FreeTypeFont, "getlength", lambda self, text: counted(text))
    for text in ("x" * 100_000, "a b " * 30_000, "\u0301" * 100_000, "i" * 100_000):
        lines = wrap(text, face, 180, 3)
        assert 1 <= len(lines) <= 3 and lines[-1].endswith("...")
        assert all(measure(line) <= 180 for line in lines)
    assert longest < 2_000


def test_a_short_line_is_cut_where_it_ends() -> None:
    face = font(15)
    text = "A red mug with a very long name indeed"
    shown = cut(text, face, 120)
    kept = shown.removesuffix("...")
    assert text.startswith(kept) and face.getlength(shown) <= 120
    assert face.getlength(f"{text[: len(kept) + 2]}...") > 120
    assert cut(text, face, 1_000) == text
