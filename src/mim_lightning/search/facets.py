"""What a catalogue can be filtered by: the values of its short columns, and the range of its numbers.

A table of products comes in when an index is built or added to, plain containers for its card go out; the page makes
its filters of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mim_lightning.search.index.filters import NUMBER, TEXT
from mim_lightning.search.index.products import ID, ProductTable, type_products

FACETS = "facets"  # key of the index card's `extra`
MAX_VALUES = 60  # of a column of text; one with more is no choice but a description
NOT_FILTERED = (ID, "title")
Facet = dict[str, Any]  # {"values": [...]} of text, {"min": ..., "max": ...} of numbers, None where all are empty


def describe_facets(products: pa.Table) -> dict[str, Facet]:
    """Return what each column holds; those of too many texts, and of true and false, are left out."""
    return _describe(type_products(products))


def extend_facets(facets: Mapping[str, Facet], products: pa.Table) -> dict[str, Facet]:
    """Return the facets of a catalogue that further products were added to.

    A column that is not among them is left out for good: it had too many texts. What was replaced or deleted still
    counts, until the index is built anew.

    Raises:
        ValueError: a column of numbers holds something else now.
    """
    kinds = {name: TEXT if "values" in facet else NUMBER for name, facet in facets.items()}
    known = [name for name in products.column_names if name in kinds]
    added = _describe(type_products(products.select([ID, *known]), {ID: TEXT, **kinds}))
    joined = {name: _joined(facet, added[name]) for name, facet in facets.items() if name in added}
    return {name: facet for name, facet in joined.items() if facet is not None}


def choices(facets: Mapping[str, Facet]) -> dict[str, Facet]:
    """Return the facets that leave a choice: several values, or a range."""
    return {name: facet for name, facet in facets.items() if _leaves_choice(facet)}


def _leaves_choice(facet: Facet) -> bool:
    if "values" in facet:
        return len(facet["values"]) > 1
    return facet["min"] is not None and facet["min"] < facet["max"]


def _describe(products: ProductTable) -> dict[str, Facet]:
    columns = {name: kind for name, kind in products.kinds.items() if name not in NOT_FILTERED}
    described = {name: _facet(products.table[name].drop_null(), kind) for name, kind in columns.items()}
    return {name: facet for name, facet in described.items() if facet is not None}


def _facet(column: pa.ChunkedArray, kind: str) -> Facet | None:
    if kind == NUMBER:
        return pc.min_max(column).as_py()
    return _values(pc.unique(column).to_pylist()) if kind == TEXT else None


def _joined(facet: Facet, added: Facet) -> Facet | None:
    if "values" in facet:
        return _values({*facet["values"], *added["values"]})
    ends = [end for part in (facet, added) for end in (part["min"], part["max"]) if end is not None]
    return {"min": min(ends, default=None), "max": max(ends, default=None)}


def _values(values: Collection[str]) -> Facet | None:
    return {"values": sorted(values)} if len(values) <= MAX_VALUES else None
