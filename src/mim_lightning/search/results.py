"""What people see of an index and of a search: tables in the terminal, and the hits as one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mim_lightning.data.images.codec import decode_upright
from mim_lightning.data.images.crops import CropSettings
from mim_lightning.data.images.limits import ImageError
from mim_lightning.display.pil_text import cut, font, paste_image, wrap
from mim_lightning.display.style import FAINT, INK, PAPER, RULE
from mim_lightning.display.text import plain
from mim_lightning.io.atomic import atomic_write
from mim_lightning.search.index.card import CATALOG_VERSIONS, CROPS, TRAINED_WIDTHS, IndexCard
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import SearchHit, SearchResult
from mim_lightning.search.size_cost import describe_cost

MAX_COLUMNS = 3  # of the metadata, besides title and category
ID = "product"  # header of its column
MIN_TITLE, MAX_TITLE = 16, 40  # characters
COLUMN_WIDTH = 14  # of each other column
MAX_ID, MAX_CELL = 40, 100  # characters, before the columns are measured
NUMBER_WIDTH = len("-0.123")
FRAME = 3  # of each column
CELL, GAP, MARGIN, COLUMNS = 180, 14, 20, 5  # pixels; hits per row
LINE, NUM_LINES = 19, 3  # of a caption
FONT_SIZE = 15  # pixels


def print_card(place: str, card: IndexCard, num_absent: int = 0) -> None:
    """Print the size, the type, the recall and the model of an index."""
    table = Table(title=escape(plain(place)), title_justify="left", show_header=False)
    rows = f"{card.num_rows:,} rows" + (f", {num_absent:,} without a vector left out" if num_absent else "")
    recall = card.recall
    measured = f"{recall.value:.4f} over {recall.num_queries:,} queries: {recall.how}"
    versions = card.extra.get(CATALOG_VERSIONS, {})
    for name, text in (
        ("products", f"{card.num_products:,} ({rows})"),
        ("index", f"{card.backend}, {card.why}"),
        (f"recall@{recall.k}", measured if recall.num_queries else "1, every row is compared"),
        *([("full vectors", describe_full_recall(card))] if card.full_recall is not None else []),
        ("gallery", f"{card.gallery}, {describe_vectors(card)}, {card.metric.replace('_', ' ')}"),
        *([("crops", _describe_crops(card))] if CROPS in card.extra else []),
        *([("bytes a product", _describe_bytes(card))] if card.memory_bytes_per_row else []),
        *([("this size costs", cost)] if (cost := describe_cost(card)) else []),
        ("model", card.fingerprint),
        *(("catalog", f"version {number} of {place}") for place, number in versions.items()),
        ("built in", f"{card.build_seconds:.1f} s"),
    ):
        table.add_row(name, Text(plain(text)))
    Console().print(table)


def describe_vectors(card: IndexCard) -> str:
    """Return the dimension and the precision of an index, and whether the model was trained at this dimension."""
    cut = f"{card.dimension} of {card.full_dimension}" if card.full_dimension else f"{card.dimension}"
    trained = card.extra.get(TRAINED_WIDTHS)
    is_known = not card.full_dimension or trained is None or card.dimension in trained
    precision = "" if card.precision == "float32" else f", {card.precision} codes"
    return f"{cut} dimensions{'' if is_known else ' (the model was not trained at this width)'}{precision}"


def describe_full_recall(card: IndexCard) -> str:
    """Return how many of the best products by the full vectors are found."""
    assert card.full_recall is not None
    found = card.full_recall
    return f"{found.value:.4f} of the best {found.k} by full vectors, over {found.num_queries:,} queries: {found.how}"


def _describe_crops(card: IndexCard) -> str:
    vectors = card.num_rows / max(1, card.num_products)
    return f"{CropSettings(**card.extra[CROPS])} and the whole, {vectors:.1f} vectors a product"


def _describe_bytes(card: IndexCard) -> str:
    rows = card.num_rows / max(1, card.num_products)
    memory, disk = (round(rows * count) for count in (card.memory_bytes_per_row, card.disk_bytes_per_row))
    return f"{memory:,} in memory, {disk:,} on disk"


def print_result(result: SearchResult, num_products: int) -> None:
    """Print the hits with their scores, what each part of the query adds, and their metadata."""
    if not result.hits:
        print("no product passes the filter")
        return
    console, parts = Console(), list(result.hits[0].parts)
    parts = parts if len(parts) > 1 else []
    ids = [plain(hit.product_id, MAX_ID) for hit in result.hits]
    # ids and numbers are shown in full, and as much of the metadata as fits
    width = console.width - max(map(cell_len, [ID, *ids])) - len(str(len(result.hits)))
    is_calibrated = result.hits[0].probability is not None
    numbers = ("score", *(("right",) if is_calibrated else ()), *parts)  # right: the probability of it
    width -= sum(max(len(name), NUMBER_WIDTH) for name in numbers) + FRAME * (3 + len(numbers))
    columns = [name for name in result.hits[0].metadata if name not in ("product_id", "title")]
    columns = sorted(columns, key=lambda name: name != "category")[: MAX_COLUMNS + 1]
    columns = columns[: max(0, (width - MIN_TITLE) // (FRAME + COLUMN_WIDTH))]
    title_width = width - len(columns) * (FRAME + COLUMN_WIDTH)
    table = Table(
        caption=f"{len(result.hits)} of {num_products:,} products; model {result.encode_ms:.0f} ms, "
        f"index {result.index_ms:.1f} ms"
        + (f"; scores combined of the best {result.num_candidates} of each part" if result.num_candidates else ""),
        caption_justify="left",
    )
    table.add_column("", justify="right", no_wrap=True)
    table.add_column(ID, no_wrap=True)
    table.add_column("title", max_width=max(MIN_TITLE, min(MAX_TITLE, title_width)), no_wrap=True)
    for name in columns:
        table.add_column(Text(plain(name, MAX_CELL)), max_width=COLUMN_WIDTH, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for rank, (hit, product_id) in enumerate(zip(result.hits, ids, strict=True), start=1):
        cells = [hit.metadata.get(name) for name in ("title", *columns)]
        values = [hit.score, *([] if hit.probability is None else [hit.probability])]
        values += hit.parts.values() if parts else ()
        table.add_row(
            str(rank),
            Text(product_id),
            *(Text("" if cell is None else plain(cell, MAX_CELL)) for cell in cells),
            *(f"{value:.3f}" for value in values),
        )
    console.print(table)
    if result.has_match is False:
        print("nothing here seems to match: the first score is below the threshold of the index's calibration")


def draw_results(
    query: SearchQuery, query_image: bytes | None, hits: Sequence[SearchHit], images: Mapping[str, bytes]
) -> Image.Image:
    """Return an image: the query on the left, the hits beside it, best first.

    Args:
        query_image: the first of the query, or that of the product it is similar to.
    """
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
