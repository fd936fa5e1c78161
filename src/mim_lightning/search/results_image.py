"""A search as one image: the query on the left, the hits beside it, best first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from mim_lightning.data.images.codec import decode_upright
from mim_lightning.data.images.limits import ImageError
from mim_lightning.display.pil_text import cut, font, paste_image, wrap
from mim_lightning.display.style import FAINT, INK, PAPER, RULE
from mim_lightning.display.text import plain
from mim_lightning.io.atomic import atomic_write
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import SearchHit

CELL, GAP, MARGIN, COLUMNS = 180, 14, 20, 5  # pixels; hits per row
LINE, NUM_LINES = 19, 3  # of a caption
FONT_SIZE = 15  # pixels


def draw_results(
    query: SearchQuery, query_image: bytes | None, hits: Sequence[SearchHit], images: Mapping[str, bytes]
) -> Image.Image:
    """Return the image; `query_image` is the first of the query, or that of the product it is similar to."""
    num_rows = max(1, -(-len(hits) // COLUMNS))
    row_height = CELL + (NUM_LINES + 1) * LINE + GAP
    width = 2 * MARGIN + (COLUMNS + 1) * (CELL + GAP) + GAP
    canvas = Image.new("RGB", (width, 2 * MARGIN + num_rows * row_height), PAPER)
    _draw_query(canvas, query, query_image)
    for number, hit in enumerate(hits):
        left = MARGIN + (1 + number % COLUMNS) * (CELL + GAP) + GAP
        top = MARGIN + number // COLUMNS * row_height
        data = images.get(hit.product_id)
        paste_image(canvas, (left, top), CELL, _decode(data) if data else None, font(FONT_SIZE))
        title = plain(hit.metadata.get("title") or hit.product_id)
        _write(canvas, (left, top + CELL + 4), [*wrap(title, font(FONT_SIZE), CELL, NUM_LINES - 1)], INK)
        _write(canvas, (left, top + CELL + 4 + (NUM_LINES - 1) * LINE), [f"{number + 1}.  {hit.score:.3f}"], FAINT)
    line = MARGIN + CELL + GAP
    ImageDraw.Draw(canvas).rectangle((line, MARGIN, line + 1, canvas.height - MARGIN), RULE)
    return canvas


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image, in the format that the suffix says.

    Raises:
        ValueError: there is no such format.
    """
    format_name = Image.registered_extensions().get(path.suffix.lower())
    if format_name not in Image.SAVE:
        raise ValueError(f"output_image={path}: no image format has this suffix; give a file such as search.png")
    with atomic_write(path) as partial:
        image.save(partial, format_name)


def _draw_query(canvas: Image.Image, query: SearchQuery, query_image: bytes | None) -> None:
    top = MARGIN
    if query_image is not None:
        paste_image(canvas, (MARGIN, top), CELL, _decode(query_image), font(FONT_SIZE))
        top += CELL + 4
    lines = [f"“{query.text}”"] if query.text else []
    lines += [f"not “{query.not_text}”"] if query.not_text else []
    lines += [f"like {query.like}"] if query.like else []
    lines += [f"only {query.where}"] if query.where else []
    face = font(FONT_SIZE)
    _write(canvas, (MARGIN, top), [line for text in lines for line in wrap(plain(text), face, CELL, NUM_LINES)], INK)


def _decode(data: bytes) -> Image.Image | None:
    """Decode an image, upright as its EXIF orientation says; None if it is damaged."""
    try:
        return Image.fromarray(decode_upright(data, CELL, CELL))
    except ImageError:
        return None


def _write(canvas: Image.Image, corner: tuple[int, int], lines: Sequence[str], color: str) -> None:
    for number, line in enumerate(lines):
        text = cut(line, font(FONT_SIZE), CELL)
        ImageDraw.Draw(canvas).text((corner[0], corner[1] + number * LINE), text, color, font(FONT_SIZE))
