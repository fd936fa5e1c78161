"""The terminal output of an index and of a search."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mim_lightning.display.text import plain
from mim_lightning.search.index.card import CATALOG_VERSIONS, IndexCard
from mim_lightning.search.searcher import SearchResult

MAX_COLUMNS = 3  # of the metadata, besides title and category
MIN_TITLE, MAX_TITLE = 16, 40  # characters
COLUMN_WIDTH = 14  # of each other column
MAX_ID, MAX_CELL = 40, 100  # characters, before the columns are measured
NUMBER_WIDTH = len("-0.123")
FRAME = 3  # of each column


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
        ("gallery", f"{card.gallery}, {card.dimension} dimensions, {card.metric.replace('_', ' ')}"),
        ("model", card.fingerprint),
        *(("catalog", f"version {number} of {place}") for place, number in versions.items()),
        ("built in", f"{card.build_seconds:.1f} s"),
    ):
        table.add_row(name, Text(plain(text)))
    Console().print(table)


def print_result(result: SearchResult, num_products: int) -> None:
    """Print the hits with their scores, what each part of the query adds, and their metadata."""
    if not result.hits:
        print("no product passes the filter")
        return
    console, parts = Console(), list(result.hits[0].parts)
    parts = parts if len(parts) > 1 else []
    ids = [plain(hit.product_id, MAX_ID) for hit in result.hits]
    # ids and numbers are shown in full, and as much of the metadata as fits
    width = console.width - max(map(cell_len, ids)) - len(str(len(result.hits)))
    width -= sum(max(len(name), NUMBER_WIDTH) for name in ("score", *parts)) + FRAME * (4 + len(parts))
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
    table.add_column("product", no_wrap=True)
    table.add_column("title", max_width=max(MIN_TITLE, min(MAX_TITLE, title_width)), no_wrap=True)
    for name in columns:
        table.add_column(Text(plain(name, MAX_CELL)), max_width=COLUMN_WIDTH, no_wrap=True)
    for name in ("score", *parts):
        table.add_column(name, justify="right", no_wrap=True)
    for rank, (hit, product_id) in enumerate(zip(result.hits, ids, strict=True), start=1):
        cells = [hit.metadata.get(name) for name in ("title", *columns)]
        numbers = [hit.score, *(hit.parts.values() if parts else ())]
        table.add_row(
            str(rank),
            Text(product_id),
            *(Text("" if cell is None else plain(cell, MAX_CELL)) for cell in cells),
            *(f"{number:.3f}" for number in numbers),
        )
    console.print(table)
