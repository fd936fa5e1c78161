"""A picture of what models find: a query a row, the first hits of up to five models side by side, as in the paper's
figures 2 and 5: right ones framed blue, wrong ones red.

Evaluation records and the shard sets behind them come in, a Pillow image goes out; the train and evaluate doors save
one of their own model, the draw door one of several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from PIL import Image, ImageDraw

from mim_lightning.analysis.figures.hits_layout import (
    CAPTION_LINE,
    CAPTION_LINES,
    CAPTION_SIZE,
    CELL,
    FRAME,
    GAP,
    HEADER_LINE,
    HEADER_SIZE,
    HITS_BY_MODELS,
    MARGIN,
    MAX_LABEL_LINES,
    MAX_MODELS,
    TEXT_SIZE,
    TITLE_SIZE,
    Layout,
)
from mim_lightning.analysis.figures.hits_selection import ChosenQueries, choose_queries, directions_of
from mim_lightning.analysis.record import DirectionRecord, EvaluationRecord
from mim_lightning.data.images.codec import decode_image
from mim_lightning.data.images.limits import ImageError
from mim_lightning.data.shards.sample_finder import find_samples
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.display.pil_text import cut, font, paste_image, wrap
from mim_lightning.display.style import FAINT, INK, PAPER, RIGHT, RULE, WRONG
from mim_lightning.display.text import plain
from mim_lightning.fields import PRODUCT_IMAGE, PRODUCT_TEXT, QUERY_IMAGE, QUERY_TEXT
from mim_lightning.types import Sample


def draw_hits(
    records: Mapping[str, EvaluationRecord],
    direction: str,
    queries: ShardSet,
    products: Sequence[ShardSet],
    num_queries: int = 8,
    num_hits: int | None = None,
    seed: int = 0,
) -> Image.Image:
    """Draw queries with each model's first hits, see `choose_queries` for which.

    Args:
        records: by the model's name, as it shall stand there.
        direction: that all of them have.
        queries, products: that were evaluated, with their pictures.
        num_queries, num_hits: rows, and hits a model; None: as many as can be read.
        seed: another one shows other queries.

    Raises:
        ValueError: more than five models, a direction that one lacks, or no query in common.
    """
    if not 1 <= len(records) <= MAX_MODELS:
        raise ValueError(f"{len(records)} models: a grid of hits shows 1 to {MAX_MODELS} side by side")
    models = directions_of(records, direction)
    chosen = choose_queries(list(models.values()), num_queries, seed)
    layout = Layout(len(models), num_hits or HITS_BY_MODELS[len(models)], len(chosen.query_ids), label_lines=1)
    labels = [wrap(label, font(HEADER_SIZE, True), layout.block_width, MAX_LABEL_LINES) for label in models]
    layout = replace(layout, label_lines=max(map(len, labels)))
    sheet = Image.new("RGB", layout.size, PAPER)
    _draw_heads(ImageDraw.Draw(sheet), layout, direction, labels, chosen)
    rows = {label: {q: row for row, q in enumerate(model.query_ids)} for label, model in models.items()}
    answers = [[(model, rows[label][q]) for label, model in models.items()] for q in chosen.query_ids]
    units = [model.unit_ids[row] for (model, row), *_ in answers]
    hits = [hit for row in answers for model, place in row for hit in model.hit_ids[place][: layout.num_hits]]
    query_samples = find_samples([queries], chosen.query_ids)
    product_samples = find_samples(products, [*units, *hits])
    parts = _query_parts(next(iter(records.values())), direction)
    for row, (query_id, unit_id) in enumerate(zip(chosen.query_ids, units, strict=True)):
        _draw_query(sheet, layout.query_corner(row), query_samples.get(query_id), parts)
        _draw_product(sheet, layout.truth_corner(row), product_samples.get(unit_id), unit_id)
        for column, (model, place) in enumerate(answers[row]):
            _draw_answer(sheet, layout, row, column, model, place, product_samples)
    return sheet


def _query_parts(record: EvaluationRecord, direction: str) -> set[str]:
    """Return the towers that see the query: what the model does not know is not shown."""
    config = record.facts.config
    side = config["directions"][direction]["query"]
    return set((config["model"].get("fusions") or {}).get(side, {side}))


def _draw_heads(
    draw: ImageDraw.ImageDraw, layout: Layout, direction: str, labels: Sequence[Sequence[str]], chosen: ChosenQueries
) -> None:
    width = layout.size[0] - 2 * MARGIN
    title = font(TITLE_SIZE, True)
    draw.text((MARGIN, 12), cut(direction.replace("_", " "), title, width), INK, title)
    rows = f"{len(chosen.query_ids)} of {chosen.num_shared} queries"
    if len(labels) > 1:
        rows += f", first those on which the models disagree ({chosen.num_disputed})"
    note = f"First hits with their score: blue right, red wrong. Shown: {rows}."
    lines = "\n".join(wrap(note, font(TEXT_SIZE), width, 2))
    draw.multiline_text((MARGIN, 52), lines, FAINT, font(TEXT_SIZE), spacing=5)
    base = layout.header_base
    for (left, _), text in ((layout.query_corner(0), "query"), (layout.truth_corner(0), "right product")):
        draw.text((left, base), text, FAINT, font(TEXT_SIZE), anchor="ls")
    for column, (label, share) in enumerate(zip(labels, chosen.shares, strict=True)):
        left, right = layout.block_left(column), layout.block_left(column) + layout.block_width
        for number, line in enumerate(reversed(label), start=1):
            draw.text((left, base - number * HEADER_LINE), line, INK, font(HEADER_SIZE, True), anchor="ls")
        draw.text((left, base), f"hit@1 {share:.3f}", INK, font(HEADER_SIZE), anchor="ls")
        draw.rectangle((left, base + 10, right - 1, base + 11), FAINT)


def _draw_query(sheet: Image.Image, corner: tuple[int, int], sample: Sample | None, parts: set[str]) -> None:
    inputs = sample.inputs if sample else {}
    words = plain(inputs.get(QUERY_TEXT, "")) if QUERY_TEXT in parts else ""
    if QUERY_IMAGE in parts:
        _paste(sheet, corner, inputs.get(QUERY_IMAGE), inset=0)
        _write_caption(sheet, corner, f"“{words}”" if words else "", INK)
        return
    draw, face = ImageDraw.Draw(sheet), font(HEADER_SIZE + 2)
    left, top = corner
    draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline=RULE, width=2)
    lines = "\n".join(wrap(f"“{words}”", face, CELL - 2 * GAP, 4))
    middle = (left + CELL / 2, top + CELL / 2)
    draw.multiline_text(middle, lines, INK, face, anchor="mm", align="center", spacing=6)


def _draw_product(sheet: Image.Image, corner: tuple[int, int], sample: Sample | None, product_id: str) -> None:
    _paste(sheet, corner, sample.inputs.get(PRODUCT_IMAGE) if sample else None, inset=FRAME)
    title = str(sample.inputs.get(PRODUCT_TEXT, "")).split(". ")[0] if sample else ""
    _write_caption(sheet, corner, plain(title or product_id), INK)


def _draw_answer(
    sheet: Image.Image,
    layout: Layout,
    row: int,
    column: int,
    model: DirectionRecord,
    place: int,
    samples: Mapping[str, Sample],
) -> None:
    """Draw the hits of one model for one query, and where the right product stands if it is not among them."""
    draw = ImageDraw.Draw(sheet)
    hits = zip(model.hit_ids[place], model.hit_scores[place], model.hit_is_relevant[place], strict=True)
    is_found = False
    for number, (product_id, score, is_right) in zip(range(layout.num_hits), hits, strict=False):
        left, top = layout.hit_corner(row, column, number)
        _draw_product(sheet, (left, top), samples.get(product_id), product_id)
        colour = RIGHT if is_right else WRONG
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline=colour, width=FRAME)
        text, face = f"{score:.2f}", font(CAPTION_SIZE)
        tab = left + CELL - face.getlength(text) - 2 * FRAME, top + CELL - CAPTION_LINE - FRAME
        draw.rectangle((*tab, left + CELL - 1, top + CELL - 1), fill=colour)
        draw.text((left + CELL - FRAME, top + CELL - FRAME), text, PAPER, face, anchor="rs")
        is_found = is_found or is_right
    if not is_found:
        rank = int(model.ranks[place])
        left, top = layout.hit_corner(row, column, 0)
        text = f"right product at rank {rank}" if rank else "right product beyond the depth"
        face = font(CAPTION_SIZE)
        draw.text((left, top - 5), cut(text, face, layout.block_width), FAINT, face, anchor="ls")


def _paste(sheet: Image.Image, corner: tuple[int, int], data: bytes | str | None, inset: int) -> None:
    picture = None
    if isinstance(data, bytes):
        with suppress(ImageError):  # a damaged one is told as none
            picture = Image.fromarray(decode_image(data, CELL, CELL))
    paste_image(sheet, corner, CELL, picture, font(CAPTION_SIZE), inset)


def _write_caption(sheet: Image.Image, corner: tuple[int, int], text: str, colour: str) -> None:
    face = font(CAPTION_SIZE)
    for number, line in enumerate(wrap(text, face, CELL, CAPTION_LINES)):
        where = (corner[0], corner[1] + CELL + 4 + number * CAPTION_LINE)
        ImageDraw.Draw(sheet).text(where, line, colour, face)
