"""A search as one picture: what was asked on the left, the hits beside it, best first.

A query, its hits and their pictures come in, a Pillow image goes out; the search door saves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from mim_lightning.data.images.codec import decode_upright
from mim_lightning.data.images.limits import ImageError
from mim_lightning.display.pil_text import cut, font, paste_image, wrap
from mim_lightning.display.style import FAINT, INK, PAPER, RULE
from mim_lightning.display.text import plain
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import SearchHit

CELL, GAP, MARGIN, COLUMNS = 180, 14, 20, 5  # pixels; hits a row
LINE, NUM_LINES = 19, 3  # of a caption
LETTERS = 15  # size of letters, pixels


def draw_sheet(
    query: SearchQuery, photo: bytes | None, hits: Sequence[SearchHit], pictures: Mapping[str, bytes]
) -> Image.Image:
    """Return the picture; `photo` is the first of the query's, or that of the product it goes on from."""
    num_rows = max(1, -(-len(hits) // COLUMNS))
    row_height = CELL + (NUM_LINES + 1) * LINE + GAP
    width = 2 * MARGIN + (COLUMNS + 1) * (CELL + GAP) + GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + num_rows * row_height), PAPER)
    _draw_query(sheet, query, photo)
    for number, hit in enumerate(hits):
        left = MARGIN + (1 + number % COLUMNS) * (CELL + GAP) + GAP
        top = MARGIN + number // COLUMNS * row_height
        data = pictures.get(hit.product_id)
        paste_image(sheet, (left, top), CELL, _upright(data) if data else None, font(LETTERS))
        title = plain(hit.metadata.get("title") or hit.product_id)
        _write(sheet, (left, top + CELL + 4), [*wrap(title, font(LETTERS), CELL, NUM_LINES - 1)], INK)
        _write(sheet, (left, top + CELL + 4 + (NUM_LINES - 1) * LINE), [f"{number + 1}.  {hit.score:.3f}"], FAINT)
    line = MARGIN + CELL + GAP
    ImageDraw.Draw(sheet).rectangle((line, MARGIN, line + 1, sheet.height - MARGIN), RULE)
    return sheet


def _draw_query(sheet: Image.Image, query: SearchQuery, photo: bytes | None) -> None:
    top = MARGIN
    if photo is not None:
        paste_image(sheet, (MARGIN, top), CELL, _upright(photo), font(LETTERS))
        top += CELL + 4
    lines = [f"“{query.text}”"] if query.text else []
    lines += [f"not “{query.not_text}”"] if query.not_text else []
    lines += [f"like {query.like}"] if query.like else []
    lines += [f"only {query.where}"] if query.where else []
    face = font(LETTERS)
    _write(sheet, (MARGIN, top), [line for text in lines for line in wrap(plain(text), face, CELL, NUM_LINES)], INK)


def _upright(data: bytes) -> Image.Image | None:
    """Decode a picture; a photo from a telephone says how it was held. None: it is damaged."""
    try:
        return Image.fromarray(decode_upright(data, CELL, CELL))
    except ImageError:
        return None


def _write(sheet: Image.Image, corner: tuple[int, int], lines: Sequence[str], colour: str) -> None:
    for number, line in enumerate(lines):
        text = cut(line, font(LETTERS), CELL)
        ImageDraw.Draw(sheet).text((corner[0], corner[1] + number * LINE), text, colour, font(LETTERS))
