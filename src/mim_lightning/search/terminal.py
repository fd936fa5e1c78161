"""What an index and a search say on the terminal.

Cards and results come in, tables go out; the build_index and search doors print them.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from mim_lightning.search.index.card import IndexCard
from mim_lightning.search.searcher import SearchResult

SHOWN_COLUMNS = 3  # of the metadata, besides title and category
MAX_WIDTH = 32  # letters of a column


def print_card(place: str, card: IndexCard, num_absent: int = 0) -> None:
    """Print what an index is, how it was chosen and how good it was found to be."""
    table = Table(title=place, title_justify="left", show_header=False)
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
        table.add_row(name, text)
    Console().print(table)


def print_result(result: SearchResult, num_products: int) -> None:
    """Print the hits with their scores, what each part of the query added, and what is known of them."""
    if not result.hits:
        print("no product passes the filter")
        return
    parts = list(result.hits[0].parts)
    further = [name for name in result.hits[0].metadata if name not in ("product_id", "title", "category")]
    table = Table(
        caption=f"{len(result.hits)} of {num_products:,} products; model {result.encode_ms:.0f} ms, "
        f"index {result.index_ms:.1f} ms",
        caption_justify="left",
    )
    table.add_column("", justify="right")
    for name in ("product", "title", "category", *further[:SHOWN_COLUMNS]):
        table.add_column(name, max_width=MAX_WIDTH, no_wrap=True)
    for name in ("score", *(parts if len(parts) > 1 else ())):
        table.add_column(name, justify="right")
    for rank, hit in enumerate(result.hits, start=1):
        facts = [hit.metadata.get(name) for name in ("title", "category", *further[:SHOWN_COLUMNS])]
        numbers = [hit.score, *(hit.parts.values() if len(parts) > 1 else ())]
        table.add_row(
            str(rank),
            hit.product_id,
            *("" if fact is None else str(fact) for fact in facts),
            *(f"{number:.3f}" for number in numbers),
        )
    Console().print(table)
