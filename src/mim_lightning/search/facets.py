"""What a catalogue can be filtered by: the values of its short columns, and the range of its numbers.

A table of products comes in when an index is built, plain containers for its card go out; the page makes its filters
of them.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

FACETS = "facets"  # key of the index card's `extra`
MAX_VALUES = 60  # of a column of text; one with more is no choice but a description
NOT_FILTERED = ("product_id", "title")


def describe_facets(products: pa.Table) -> dict[str, dict[str, Any]]:
    """Return {"values": [...]} of columns of text, {"min": ..., "max": ...} of numbers; others are left out."""
    facets: dict[str, dict[str, Any]] = {}
    for name in products.column_names:
        if name in NOT_FILTERED:
            continue
        column = products[name].drop_null()
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            ends = pc.min_max(column).as_py()
            if ends["min"] is not None and ends["min"] < ends["max"]:
                facets[name] = ends
        elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            values = pc.unique(column)
            if 1 < len(values) <= MAX_VALUES:
                facets[name] = {"values": sorted(values.to_pylist())}
    return facets
