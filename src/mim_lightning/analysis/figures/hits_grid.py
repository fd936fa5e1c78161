"""An image of what models find: one row a query, the first hits of up to five models side by side.

As in figures 2 and 5 of the paper: relevant hits framed blue, others red.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from mim_lightning.analysis.record import DirectionRecord, EvaluationRecord
from mim_lightning.data.images.codec import decode_image
from mim_lightning.data.images.limits import ImageError
from mim_lightning.data.shards.lookup import find_samples
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.display.pil_text import cut, font, paste_image, wrap
from mim_lightning.display.style import FAINT, INK, PAPER, RIGHT, RULE, WRONG
from mim_lightning.display.text import plain
from mim_lightning.fields import PRODUCT_IMAGE, PRODUCT_TEXT, QUERY_IMAGE, QUERY_TEXT
from mim_lightning.metric_names import variants_of
from mim_lightning.model.fusion import weights_of
from mim_lightning.types import Sample, hash_id

MAX_MODELS = 5
HITS_BY_MODELS = {1: 5, 2: 4, 3: 3, 4: 2, 5: 2}  # hits of each model, so that the figure is readable at half its size
CELL, GAP, MARGIN, FRAME = 150, 10, 24, 6  # all sizes in pixels
BLOCK_GAP = 34  # between models
TITLE, HEADER, NOTE, CAPTION_LINES, CAPTION_LINE = 104, 46, 30, 3, 20  # heights
HEADER_LINE, MAX_LABEL_LINES = 26, 2
TITLE_SIZE, HEADER_SIZE, TEXT_SIZE, CAPTION_SIZE = 28, 21, 17, 16  # of fonts; readable at half the size
ROW = NOTE + CELL + CAPTION_LINES * CAPTION_LINE + 14
Pattern = tuple[bool, ...]  # by model: whether the first hit is relevant


@dataclass(frozen=True)
class Layout:
    """Positions in the grid, in pixels."""

    num_models: int
    num_hits: int
    num_queries: int
    label_lines: int  # of the models' names

    @property
    def size(self) -> tuple[int, int]:
        width = self.block_left(self.num_models) - BLOCK_GAP + MARGIN
        return width, self.query_corner(self.num_queries)[1] - NOTE + MARGIN // 2

    def block_left(self, model: int) -> int:
        return MARGIN + 2 * (CELL + GAP) - GAP + BLOCK_GAP + model * (self.block_width + BLOCK_GAP)

    @property
    def block_width(self) -> int:
        return self.num_hits * (CELL + GAP) - GAP

    @property
    def header_base(self) -> int:
        """Baseline of the last header line."""
        return TITLE + self.label_lines * HEADER_LINE + HEADER_LINE

    def query_corner(self, row: int) -> tuple[int, int]:
        return MARGIN, TITLE + self.label_lines * HEADER_LINE + HEADER + row * ROW + NOTE

    def truth_corner(self, row: int) -> tuple[int, int]:
        return MARGIN + CELL + GAP, self.query_corner(row)[1]

    def hit_corner(self, row: int, model: int, rank: int) -> tuple[int, int]:
        """Return the upper left corner of a hit; `rank` 0 is the first."""
        return self.block_left(model) + rank * (CELL + GAP), self.query_corner(row)[1]


@dataclass(frozen=True)
class SelectedQueries:
    """Queries to show, and hit@1 over all queries that the models share."""

    query_ids: list[str]  # disputed ones first, sorted by pattern
    hit_rates: list[float]  # hit@1 by model
    num_shared: int
    num_disputed: int  # on which the models disagree


def records_of_direction(records: Mapping[str, EvaluationRecord], direction: str) -> dict[str, DirectionRecord]:
    """Return one direction of each evaluation.

    Raises:
        ValueError: an evaluation lacks the direction.
    """
    for label, record in records.items():
        if direction not in record.directions:
            raise ValueError(
                f"--direction {direction}: {label} has no such direction; it has {', '.join(record.directions)}"
            )
    return {label: record.directions[direction] for label, record in records.items()}


def select_queries_to_plot(models: Sequence[DirectionRecord], num_queries: int, seed: int = 0) -> SelectedQueries:
    """Select queries that all models have; those on which they agree only if there are too few others.

    Patterns of relevant and irrelevant first hits are shown in proportion; within a pattern, queries are drawn by a
    hash of seed and id.

    Raises:
        ValueError: the models share no query, or have other relevant products for one.
    """
    rows_by_id = [{query_id: row for row, query_id in enumerate(model.query_ids)} for model in models]
    shared = set(rows_by_id[0]).intersection(*rows_by_id[1:])
    if not shared:
        raise ValueError("the runs have no query in common: other data, or another fold")
    patterns: dict[Pattern, list[str]] = defaultdict(list)
    for query_id in sorted(shared, key=lambda query_id: hash_id(f"{seed}/{query_id}")):
        rows = [rows_of[query_id] for rows_of in rows_by_id]
        if len({model.unit_ids[row] for model, row in zip(models, rows, strict=True)}) > 1:
            raise ValueError(f"query {query_id} has other relevant products in one run than in another: other data")
        patterns[tuple(bool(model.ranks[row] == 1) for model, row in zip(models, rows, strict=True))].append(query_id)
    disputed = {pattern: ids for pattern, ids in patterns.items() if len(set(pattern)) > 1}
    agreed = {pattern: ids for pattern, ids in patterns.items() if len(set(pattern)) == 1}
    num_disputed = sum(map(len, disputed.values()))
    num_first = min(num_queries, num_disputed)
    groups = (_spread(disputed, num_first), _spread(agreed, min(num_queries, len(shared)) - num_first))
    return SelectedQueries(
        query_ids=[q for group in groups for pattern in sorted(group, reverse=True) for q in group[pattern]],
        hit_rates=[
            sum(len(ids) for pattern, ids in patterns.items() if pattern[model]) / len(shared)
            for model in range(len(models))
        ],
        num_shared=len(shared),
        num_disputed=num_disputed,
    )


def draw_hits(
    records: Mapping[str, EvaluationRecord],
    direction: str,
    queries: ShardSet,
    products: Sequence[ShardSet],
    num_queries: int = 8,
    num_hits: int | None = None,
    seed: int = 0,
) -> Image.Image:
    """Draw queries with the first hits of each model, see `select_queries_to_plot` for which.

    Args:
        records: by label of the model.
        direction: one that all of them have.
        queries: that were evaluated, with their images.
        products: likewise.
        num_queries: rows.
        num_hits: of each model; None: as many as are readable.
        seed: another one selects other queries.

    Raises:
        ValueError: more than five models, no such direction, or no query in common.
    """
    if not 1 <= len(records) <= MAX_MODELS:
        raise ValueError(f"{len(records)} models: a figure of hits shows 1 to {MAX_MODELS} side by side")
    models = records_of_direction(records, direction)
    selected = select_queries_to_plot(list(models.values()), num_queries, seed)
    layout = Layout(len(models), num_hits or HITS_BY_MODELS[len(models)], len(selected.query_ids), label_lines=1)
    labels = [wrap(label, font(HEADER_SIZE, True), layout.block_width, MAX_LABEL_LINES) for label in models]
    layout = replace(layout, label_lines=max(map(len, labels)))
    image = Image.new("RGB", layout.size, PAPER)
    metrics = [next(iter(variants_of(["hit@1"], model.scores)), "hit@1") for model in models.values()]
    _draw_headers(ImageDraw.Draw(image), layout, direction, labels, metrics, selected)
    rows = {label: {q: row for row, q in enumerate(model.query_ids)} for label, model in models.items()}
    answers = [[(model, rows[label][q]) for label, model in models.items()] for q in selected.query_ids]
    units = [model.unit_ids[row] for (model, row), *_ in answers]
    hits = [hit for row in answers for model, idx in row for hit in model.hit_ids[idx][: layout.num_hits]]
    query_samples = find_samples([queries], selected.query_ids)
    product_samples = find_samples(products, [*units, *hits])
    fields = _query_fields(next(iter(records.values())), direction)
    for row, (query_id, unit_id) in enumerate(zip(selected.query_ids, units, strict=True)):
        _draw_query(image, layout.query_corner(row), query_samples.get(query_id), fields)
        _draw_product(image, layout.truth_corner(row), product_samples.get(unit_id), unit_id)
        for column, (model, idx) in enumerate(answers[row]):
            _draw_answer(image, layout, row, column, model, idx, product_samples)
    return image


def _query_fields(record: EvaluationRecord, direction: str) -> list[str]:
    """Return the fields that towers of the query side read: others are not shown."""
    config = record.facts.config
    side, model = config["directions"][direction]["query"], config["model"]
    parts, towers = weights_of((model.get("fusions") or {}).get(side, {side: 1.0})), model.get("towers") or {}
    read = [(towers.get(name) or {}).get("fields") or [name] for name in parts]
    return sorted({name for names in read for name in names}, key=lambda name: (name != QUERY_TEXT, name))


def _draw_headers(
    draw: ImageDraw.ImageDraw,
    layout: Layout,
    direction: str,
    labels: Sequence[Sequence[str]],
    metrics: Sequence[str],
    selected: SelectedQueries,
) -> None:
    width = layout.size[0] - 2 * MARGIN
    title = font(TITLE_SIZE, True)
    draw.text((MARGIN, 12), cut(direction.replace("_", " "), title, width), INK, title)
    rows = f"{len(selected.query_ids)} of {selected.num_shared} queries"
    if len(labels) > 1:
        rows += f", first those on which the models disagree ({selected.num_disputed})"
    note = f"First hits with their score: blue relevant, red not. Shown: {rows}."
    lines = "\n".join(wrap(note, font(TEXT_SIZE), width, 2))
    draw.multiline_text((MARGIN, 52), lines, FAINT, font(TEXT_SIZE), spacing=5)
    base = layout.header_base
    for (left, _), text in ((layout.query_corner(0), "query"), (layout.truth_corner(0), "relevant product")):
        draw.text((left, base), text, FAINT, font(TEXT_SIZE), anchor="ls")
    for column, (label, metric, rate) in enumerate(zip(labels, metrics, selected.hit_rates, strict=True)):
        left, right = layout.block_left(column), layout.block_left(column) + layout.block_width
        for number, line in enumerate(reversed(label), start=1):
            draw.text((left, base - number * HEADER_LINE), line, INK, font(HEADER_SIZE, True), anchor="ls")
        draw.text((left, base), f"{metric} {rate:.3f}", INK, font(HEADER_SIZE), anchor="ls")
        draw.rectangle((left, base + 10, right - 1, base + 11), FAINT)


def _draw_query(image: Image.Image, corner: tuple[int, int], sample: Sample | None, fields: Sequence[str]) -> None:
    inputs = sample.inputs if sample else {}
    texts = [value for name in fields if isinstance(value := inputs.get(name), str)]
    text = plain(", ".join(texts))
    if QUERY_IMAGE in fields:
        _paste(image, corner, inputs.get(QUERY_IMAGE), inset=0)
        _write_caption(image, corner, f"“{text}”" if text else "", INK)
        return
    draw, face = ImageDraw.Draw(image), font(HEADER_SIZE + 2)
    left, top = corner
    draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline=RULE, width=2)
    lines = "\n".join(wrap(f"“{text}”", face, CELL - 2 * GAP, 4))
    middle = (left + CELL / 2, top + CELL / 2)
    draw.multiline_text(middle, lines, INK, face, anchor="mm", align="center", spacing=6)


def _draw_product(image: Image.Image, corner: tuple[int, int], sample: Sample | None, product_id: str) -> None:
    _paste(image, corner, sample.inputs.get(PRODUCT_IMAGE) if sample else None, inset=FRAME)
    title = str(sample.inputs.get(PRODUCT_TEXT, "")).split(". ")[0] if sample else ""
    _write_caption(image, corner, plain(title or product_id), INK)


def _draw_answer(
    image: Image.Image,
    layout: Layout,
    row: int,
    column: int,
    model: DirectionRecord,
    idx: int,
    samples: Mapping[str, Sample],
) -> None:
    """Draw the hits of one model for one query, and the rank of the relevant product if it is not among them."""
    draw = ImageDraw.Draw(image)
    hits = zip(model.hit_ids[idx], model.hit_scores[idx], model.hit_is_relevant[idx], strict=True)
    is_found = False
    for rank, (product_id, score, is_relevant) in zip(range(layout.num_hits), hits, strict=False):
        left, top = layout.hit_corner(row, column, rank)
        _draw_product(image, (left, top), samples.get(product_id), product_id)
        color = RIGHT if is_relevant else WRONG
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline=color, width=FRAME)
        text, face = f"{score:.2f}", font(CAPTION_SIZE)
        tab = left + CELL - face.getlength(text) - 2 * FRAME, top + CELL - CAPTION_LINE - FRAME
        draw.rectangle((*tab, left + CELL - 1, top + CELL - 1), fill=color)
        draw.text((left + CELL - FRAME, top + CELL - FRAME), text, PAPER, face, anchor="rs")
        is_found = is_found or is_relevant
    if not is_found:
        rank = int(model.ranks[idx])
        left, top = layout.hit_corner(row, column, 0)
        text = f"relevant product at rank {rank}" if rank else "relevant product: rank > depth"
        face = font(CAPTION_SIZE)
        draw.text((left, top - 5), cut(text, face, layout.block_width), FAINT, face, anchor="ls")


def _paste(image: Image.Image, corner: tuple[int, int], data: bytes | str | None, inset: int) -> None:
    content = None
    if isinstance(data, bytes):
        with suppress(ImageError):  # a damaged one is drawn as a missing one
            content = Image.fromarray(decode_image(data, CELL, CELL))
    paste_image(image, corner, CELL, content, font(CAPTION_SIZE), inset)


def _write_caption(image: Image.Image, corner: tuple[int, int], text: str, color: str) -> None:
    face = font(CAPTION_SIZE)
    for number, line in enumerate(wrap(text, face, CELL, CAPTION_LINES)):
        where = (corner[0], corner[1] + CELL + 4 + number * CAPTION_LINE)
        ImageDraw.Draw(image).text(where, line, color, face)


def _spread(patterns: Mapping[Pattern, list[str]], count: int) -> dict[Pattern, list[str]]:
    """Return the first queries of each pattern, `count` in all, in proportion (largest remainders)."""
    total = sum(map(len, patterns.values()))
    quotas = {pattern: count * len(ids) / total for pattern, ids in patterns.items()}
    sizes = {pattern: int(quota) for pattern, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda pattern: (sizes[pattern] - quotas[pattern], pattern))
    for pattern in by_remainder[: count - sum(sizes.values())]:
        sizes[pattern] += 1
    return {pattern: ids[: sizes[pattern]] for pattern, ids in patterns.items() if sizes[pattern]}
