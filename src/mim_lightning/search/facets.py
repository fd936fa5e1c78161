"""Facets: the filters that a catalog offers, as the values of its short text columns and the ranges of its numbers.

They are computed when an index is built or extended, and stored in its card.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mim_lightning.search.index.filters import NUMBER, TEXT
from mim_lightning.search.index.products import ID, ProductTable, type_products

FACETS = "facets"  # key of the card's `extra`
MAX_VALUES = 60  # of a text column; a column with more is a description, not a choice
NOT_FILTERED = (ID, "title")
Facet = dict[str, Any]  # {"values": [...]} of text, {"min": ..., "max": ...} of numbers, None where all cells are empty


def describe_facets(products: pa.Table) -> dict[str, Facet]:
    """Return the facets of a catalog; columns of true and false, or of too many texts, are left out."""
    return _describe(type_products(products))


def extend_facets(facets: Mapping[str, Facet], products: pa.Table) -> dict[str, Facet]:
    """Return the facets of a catalog that more products were added to.

    A column without a facet stays without one: it had too many texts. Products that were replaced or deleted still
    count until the index is rebuilt.

    Raises:
        ValueError: a column of numbers now contains something else.
    """
    column_types = {name: TEXT if "values" in facet else NUMBER for name, facet in facets.items()}
    known = [name for name in products.column_names if name in column_types]
    added = _describe(type_products(products.select([ID, *known]), {ID: TEXT, **column_types}))
    merged = {name: _merge(facet, added[name]) for name, facet in facets.items() if name in added}
    return {name: facet for name, facet in merged.items() if facet is not None}


def select_choices(facets: Mapping[str, Facet]) -> dict[str, Facet]:
    """Return the facets that offer a choice: several values, or a range."""
    return {name: facet for name, facet in facets.items() if _has_choice(facet)}


def _has_choice(facet: Facet) -> bool:
    if "values" in facet:
        return len(facet["values"]) > 1
    return facet["min"] is not None and facet["min"] < facet["max"]


def _describe(products: ProductTable) -> dict[str, Facet]:
    facets: dict[str, Facet | None] = {}
    for name, column_type in products.column_types.items():
        if name not in NOT_FILTERED:
            column = products.table[name].drop_null()
            if column_type == NUMBER:
                facets[name] = pc.min_max(column).as_py()
            elif column_type == TEXT:
                facets[name] = _to_facet(pc.unique(column).to_pylist())
    return {name: facet for name, facet in facets.items() if facet is not None}


def _merge(facet: Facet, added: Facet) -> Facet | None:
    if "values" in facet:
        return _to_facet({*facet["values"], *added["values"]})
    limits = [limit for part in (facet, added) for limit in (part["min"], part["max"]) if limit is not None]
    return {"min": min(limits, default=None), "max": max(limits, default=None)}


def _to_facet(values: Collection[str]) -> Facet | None:
    return {"values": sorted(values)} if len(values) <= MAX_VALUES else None
