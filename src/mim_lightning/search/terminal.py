"""What an index and a search say on the terminal.

Cards and results come in, tables go out; the build_index and search doors print them.
"""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mim_lightning.display.text import plain
from mim_lightning.search.index.card import IndexCard
from mim_lightning.search.searcher import SearchResult

SHOWN_COLUMNS = 3  # of the metadata, besides title and category
MIN_TITLE, MAX_WIDTH = 16, 40  # letters of the title
FACT_WIDTH = 14  # of each other column
MAX_ID, MAX_FACT = 40, 100  # letters, before the columns are measured
NUMBER_WIDTH = len("-0.123")
FRAME = 3  # of each column


def print_card(place: str, card: IndexCard, num_absent: int = 0) -> None:
    """Print what an index is, how it was chosen and how good it was found to be."""
    table = Table(title=escape(plain(place)), title_justify="left", show_header=False)
    rows = f"{card.num_rows:,} rows" + (f", {num_absent:,} without a vector left out" if num_absent else "")
    recall = card.recall
    measured = f"{recall.value:.4f} over {recall.num_queries:,} queries: {recall.how}"
    for name, text in (
        ("products", f"{card.num_products:,} ({rows})"),
        ("index", f"{card.backend}, {card.why}"),
        (f"recall@{recall.k}", measured if recall.num_queries else "1, every row is compared"),
        ("gallery", f"{card.gallery}, {card.dimension} dimensions, {card.metric.replace('_', ' ')}"),
        ("model", card.fingerprint),
        ("built in", f"{card.build_seconds:.1f} s"),
    ):
        table.add_row(name, Text(plain(text)))
    Console().print(table)


def print_result(result: SearchResult, num_products: int) -> None:
    """Print the hits with their scores, what each part of the query added, and what is known of them."""
    if not result.hits:
        print("no product passes the filter")
        return
    console, names = Console(), list(result.hits[0].parts)
    numbers_of = ["score", *(names if len(names) > 1 else ())]
    ids = [plain(hit.product_id, MAX_ID) for hit in result.hits]
    id_width = max(map(cell_len, ids))
    # ids and numbers are shown whole; of what else is known, as much as finds room
    room = console.width - id_width - sum(max(len(name), NUMBER_WIDTH) for name in numbers_of)
    room -= FRAME * (3 + len(numbers_of)) + len(str(len(result.hits)))
    known = [name for name in result.hits[0].metadata if name not in ("product_id", "title")]
    known = sorted(known, key=lambda name: name != "category")[: SHOWN_COLUMNS + 1]
    known = known[: max(0, (room - MIN_TITLE) // (FRAME + FACT_WIDTH))]
    table = Table(
        caption=f"{len(result.hits)} of {num_products:,} products; model {result.encode_ms:.0f} ms, "
        f"index {result.index_ms:.1f} ms",
        caption_justify="left",
    )
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("product", no_wrap=True)
    left = room - len(known) * (FRAME + FACT_WIDTH)
    table.add_column("title", max_width=max(MIN_TITLE, min(MAX_WIDTH, left)), no_wrap=True)
    for name in known:
        table.add_column(Text(plain(name, MAX_FACT)), max_width=FACT_WIDTH, no_wrap=True)
    for name in numbers_of:
        table.add_column(name, justify="right", no_wrap=True)
    for rank, (hit, product_id) in enumerate(zip(result.hits, ids, strict=True), start=1):
        facts = [hit.metadata.get(name) for name in ("title", *known)]
        numbers = [hit.score, *(hit.parts.values() if len(names) > 1 else ())]
        table.add_row(
            str(rank),
            Text(product_id),
            *(Text("" if fact is None else plain(fact, MAX_FACT)) for fact in facts),
            *(f"{number:.3f}" for number in numbers),
        )
    console.print(table)
