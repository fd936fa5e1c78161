"""Text in Pillow pictures: a font that has people's letters, lines that stay within their width.

Texts come in, lines that fit go out; `hits_grid` writes them.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@cache
def font(size: int, is_bold: bool = False) -> Font:
    """Return DejaVu Sans from matplotlib or the system; else Pillow's own font, which has English letters only."""
    name = f"DejaVuSans{'-Bold' if is_bold else ''}.ttf"
    for path in (*_matplotlib_fonts(), Path()):
        try:
            return ImageFont.truetype(str(path / name), size)
        except OSError:
            continue
    return ImageFont.load_default(size=size)


def _matplotlib_fonts() -> list[Path]:
    try:
        from matplotlib import get_data_path
    except ModuleNotFoundError:
        return []
    return [Path(get_data_path()) / "fonts" / "ttf"]


def cut(text: str, face: Font, width: float) -> str:
    """Return a text that is at most `width` pixels wide, its end replaced by an ellipsis where it is longer."""
    is_longer = len(text) > _most(width)
    text = text[: _most(width)]
    if not is_longer and face.getlength(text) <= width:
        return text
    # halved, not shortened letter by letter: measuring takes as long as the text
    text = text[: bisect_right(range(len(text)), width, key=lambda count: face.getlength(text[:count]))]
    while text and face.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."


def _most(width: float) -> int:
    """Return more letters than anybody sees in a line: what comes after them is not even measured."""
    return max(64, 2 * int(width))


def wrap(text: str, face: Font, width: float, max_lines: int) -> list[str]:
    """Break a text between words into at most `max_lines` lines of at most `width` pixels; what is left over is cut."""
    lines: list[str] = []
    words = text[: max_lines * _most(width)].split()
    while words and len(lines) < max_lines - 1:
        count = 1
        while count < len(words) and face.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        lines.append(cut(" ".join(words[:count]), face, width))
        words = words[count:]
    return [*lines, cut(" ".join(words), face, width)] if words else lines
