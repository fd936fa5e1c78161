"""Text and images on Pillow sheets: a font with most alphabets, lines that fit a width, images in square cells."""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mim_lightning.display.style import FAINT

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@cache
def font(size: int, is_bold: bool = False) -> Font:
    """Return DejaVu Sans of matplotlib or the system, else Pillow's own font, which has English letters only."""
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
    """Return a text of at most `width` pixels; a longer one ends in an ellipsis."""
    is_longer = len(text) > _max_chars(width)
    text = text[: _max_chars(width)]
    if not is_longer and face.getlength(text) <= width:
        return text
    # by bisection: measuring takes time in proportion to the text
    text = text[: bisect_right(range(len(text)), width, key=lambda count: face.getlength(text[:count]))]
    while text and face.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."


def _max_chars(width: float) -> int:
    """Return more characters than fit in a line: what comes after them is not measured."""
    return max(64, 2 * int(width))


def wrap(text: str, face: Font, width: float, max_lines: int) -> list[str]:
    """Break a text between words into at most `max_lines` lines of at most `width` pixels; the last line is cut."""
    lines: list[str] = []
    words = text[: max_lines * _max_chars(width)].split()
    while words and len(lines) < max_lines - 1:
        count = 1
        while count < len(words) and face.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        lines.append(cut(" ".join(words[:count]), face, width))
        words = words[count:]
    return [*lines, cut(" ".join(words), face, width)] if words else lines


def paste_image(
    canvas: Image.Image, corner: tuple[int, int], side: int, image: Image.Image | None, face: Font, inset: int = 0
) -> None:
    """Draw an image centered in a square cell, `inset` pixels from its edges, or "no image" for None.

    Args:
        canvas: drawn on.
        corner: left and top of the cell.
        side: of the cell, in pixels.
        face: of the words.
    """
    left, top = corner
    if image is None:
        ImageDraw.Draw(canvas).text((left + side / 2, top + side / 2), "no image", FAINT, face, anchor="mm")
        return
    scale = (side - 2 * inset) / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    fitted = image.resize((width, height), Image.Resampling.LANCZOS)
    canvas.paste(fitted, (left + (side - fitted.width) // 2, top + (side - fitted.height) // 2))
