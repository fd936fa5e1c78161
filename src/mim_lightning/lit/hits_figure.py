"""A picture of what a model finds: a query a row, its best products, right ones framed blue, wrong ones red.

A RetrievalReport and the two shard sets come in, a Pillow image goes out; the train and evaluate doors save it.
The look follows the paper's figures 2 and 5.
"""

from __future__ import annotations

import textwrap

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mim_lightning.data.decode import decode_image
from mim_lightning.data.shards import ShardSet
from mim_lightning.types import NO_KEY, RetrievalReport, Sample

CELL, GAP, FRAME, CAPTION, TOP = 150, 12, 6, 46, 54  # pixels
BLUE, RED, INK, FAINT = "#1f6feb", "#d1242f", "#1f2328", "#6e7781"


def draw_hits(
    report: RetrievalReport, queries: ShardSet, gallery: ShardSet, num_queries: int = 8, num_hits: int = 5
) -> Image.Image:
    """Draw a sample of the queries with their first hits, as often right at first place as all of them are."""
    hits = report.hits
    chosen = _sample(hits.is_relevant[:, 0], num_queries)
    num_hits = min(num_hits, hits.product_keys.shape[1])
    query_samples = _find(queries, hits.query_keys[chosen])
    product_samples = _find(gallery, hits.product_keys[chosen, :num_hits].flatten())
    width = (num_hits + 1) * (CELL + GAP) + 2 * GAP
    sheet = Image.new("RGB", (width, TOP + len(chosen) * (CELL + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    title = f"{report.direction}   hit@1 {report.values['hit@1']:.3f}" if "hit@1" in report.values else report.direction
    draw.text((GAP, GAP), title, fill=INK, font=ImageFont.load_default(size=18))
    draw.text((GAP, GAP + 22), "query, then the first hits: blue right, red wrong", fill=FAINT, font=_font())
    for row, place in enumerate(chosen.tolist()):
        top = TOP + row * (CELL + CAPTION)
        _draw_cell(sheet, GAP, top, query_samples[int(hits.query_keys[place])], None)
        for rank in range(num_hits):
            key = int(hits.product_keys[place, rank])
            if key != NO_KEY:
                frame = BLUE if hits.is_relevant[place, rank] else RED
                _draw_cell(sheet, 2 * GAP + (rank + 1) * (CELL + GAP), top, product_samples[key], frame)
    return sheet


def _sample(is_right: torch.Tensor, size: int) -> torch.Tensor:
    """Return places spread evenly over the right and the wrong queries, in proportion to their number."""
    size = min(size, len(is_right))
    num_right = round(size * float(is_right.float().mean()))
    groups = ((is_right.nonzero()[:, 0], num_right), ((~is_right).nonzero()[:, 0], size - num_right))
    spread = [places[torch.linspace(0, len(places) - 1, count).round().long()] for places, count in groups if count]
    return torch.cat(spread).sort().values


def _find(shards: ShardSet, keys: torch.Tensor) -> dict[int, Sample]:
    """Return one sample for each id key."""
    wanted = np.unique(keys.cpu().numpy())
    places = np.flatnonzero(np.isin(shards.keys, wanted))
    return {int(shards.keys[place]): shards.read([int(place)])[0] for place in places[::-1]}


def _draw_cell(sheet: Image.Image, left: int, top: int, sample: Sample, frame: str | None) -> None:
    side = "query" if frame is None else "product"
    draw = ImageDraw.Draw(sheet)
    data = sample.inputs.get(f"{side}_image")
    if isinstance(data, bytes):
        image = Image.fromarray(decode_image(data))
        image = ImageOps.contain(image, (CELL - 2 * FRAME, CELL - 2 * FRAME), Image.Resampling.LANCZOS)
        sheet.paste(image, (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2))
    if frame:
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline=frame, width=FRAME)
    text = str(sample.inputs.get(f"{side}_text", "")).split(". ")[0]
    lines = textwrap.wrap(text, 25)[:2]
    draw.multiline_text((left, top + CELL + 3), "\n".join(lines), fill=INK, font=_font(), spacing=2)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=12)
