"""Collected embeddings to retrieval reports: which vectors of which table rank which, with what as the truth.

Tables of queries and gallery, directions and fusions come in, a RetrievalReport a direction goes out. The
validation callback calls it every epoch; `fusion_sweep` again later, with other weights and nothing embedded anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mim_lightning.metrics import EmbeddingTable, Gallery, Queries, evaluate_direction
from mim_lightning.model.fusion import Fusions, fuse
from mim_lightning.types import Direction, Embeddings, RetrievalReport

COLUMNS = ("query_keys", "product_keys", "asked_keys", "asked_grades", "shown_keys", "category_keys")


def evaluate_directions(
    directions: Mapping[str, Direction],
    queries: EmbeddingTable,
    gallery: EmbeddingTable,
    fusions: Fusions,
    **options: Any,
) -> dict[str, RetrievalReport]:
    """Evaluate each direction over whole tables with the columns `COLUMNS`.

    Args:
        directions: by name.
        queries, gallery: vectors by tower; what a direction's side lacks is left out of it.
        fusions: for the sides that are no tower.
        options: of `evaluate_direction`.

    Raises:
        ValueError: no row of a table has what a direction names, or none has an answer in the gallery.
    """
    return {
        name: _evaluate(name, direction, queries, gallery, fusions, options) for name, direction in directions.items()
    }


def _evaluate(
    name: str,
    direction: Direction,
    queries: EmbeddingTable,
    gallery: EmbeddingTable,
    fusions: Fusions,
    options: Mapping[str, Any],
) -> RetrievalReport:
    query_vectors, queries = _side(direction.query, queries, fusions)
    gallery_vectors, gallery = _side(direction.gallery, gallery, fusions)
    for end, table, rows in ((direction.query, queries, "validation query"), (direction.gallery, gallery, "product")):
        if not len(table):
            raise ValueError(
                f"directions.{name}: no {rows} has a {end}; choose a model without it, or directions.{name}=null"
            )
    asked = Queries(
        vectors=query_vectors,
        keys=queries.columns["query_keys"],
        relevant_keys=queries.columns[f"{direction.truth}_keys"],
        category_keys=queries.columns["category_keys"],
        grades=queries.columns["asked_grades"] if direction.truth == "asked" else None,
    )
    offered = Gallery(gallery_vectors, gallery.columns["product_keys"], gallery.columns["category_keys"])
    return evaluate_direction(name, asked, offered, **options)


def _side(name: str, table: EmbeddingTable, fusions: Fusions) -> tuple[Tensor, EmbeddingTable]:
    """Return the vectors of a tower or fusion and the table's columns, without rows that lack it."""
    wanted = {name: fusions[name]} if name in fusions else {}
    embeddings = fuse(Embeddings(table.vectors, table.present), wanted)
    present = embeddings.present[name]
    columns = EmbeddingTable(table.row_keys, {}, {}, table.columns)  # other towers' vectors would be copied for nothing
    return embeddings.vectors[name][present], columns.take(present)
