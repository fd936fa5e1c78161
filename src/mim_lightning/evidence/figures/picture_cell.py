"""A picture in a cell of a sheet: as large as fits, in the middle, or a word that there is none.

Decoded pictures come in, and stand on the sheet; `hits_grid` and the sheet of a search call it.
"""

from __future__ import annotations

from PIL import Image, ImageDraw

from mim_lightning.evidence.figures.lettering import Font
from mim_lightning.evidence.figures.style import FAINT


def paste_picture(
    sheet: Image.Image, corner: tuple[int, int], side: int, picture: Image.Image | None, face: Font, inset: int = 0
) -> None:
    """Put a picture into the middle of a square cell, `inset` pixels from its edges, or say that there is none."""
    left, top = corner
    if picture is None:
        middle = left + side / 2, top + side / 2
        ImageDraw.Draw(sheet).text(middle, "no picture", FAINT, face, anchor="mm")
        return
    scale = (side - 2 * inset) / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    fitted = picture.resize((width, height), Image.Resampling.LANCZOS)
    sheet.paste(fitted, (left + (side - fitted.width) // 2, top + (side - fitted.height) // 2))
