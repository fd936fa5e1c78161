"""Filters of a search: `{"category": "Fruit", "brand": ["a", "b"], "price": {"min": 1, "max": 20}}`.

A product passes a filter if it meets every condition; an empty cell meets none. `parse_filter` validates a filter
against the columns, and each backend evaluates the conditions.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

TEXT, NUMBER, FLAG = "text", "numbers", "true or false"  # types of a column, as errors name and Milvus stores them
Value = str | float | bool


@dataclass(frozen=True)
class OneOf:
    """The column contains one of the values."""

    column: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Within:
    """The column contains a number from `low` to `high`, both included; None: no limit."""

    column: str
    low: float | None
    high: float | None


Condition = OneOf | Within


def parse_filter(filter: Mapping[str, Any] | None, column_types: Mapping[str, str]) -> tuple[Condition, ...]:
    """Return the conditions of a filter, ordered by column, so that equal filters give equal conditions.

    Args:
        filter: column -> a value, a list of values, or a mapping with `min`, `max` or both.
        column_types: column -> TEXT, NUMBER or FLAG.

    Raises:
        ValueError: an unknown column, with the known ones; a value that cannot be compared with the column.
    """
    if not filter:
        return ()
    if not isinstance(filter, Mapping):
        raise ValueError(f"a filter is a mapping from column to value, not {type(filter).__name__}")
    return tuple(_parse_condition(column, filter[column], column_types) for column in sorted(filter, key=str))


def _parse_condition(column: str, wanted: Any, column_types: Mapping[str, str]) -> Condition:
    if column not in column_types:
        close = difflib.get_close_matches(str(column), column_types, 1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"filter: no column '{column}'; there are {', '.join(sorted(column_types))}{hint}")
    column_type = column_types[column]
    if isinstance(wanted, Mapping):
        return _parse_range(column, wanted, column_type)
    values = wanted if isinstance(wanted, (list, tuple, set, frozenset)) else [wanted]
    if not values:
        raise ValueError(f"filter '{column}': an empty list matches nothing; give values, or leave it out")
    return OneOf(column, tuple(sorted({_parse_value(column, value, column_type) for value in values})))


def _parse_range(column: str, wanted: Mapping[str, Any], column_type: str) -> Within:
    if column_type != NUMBER:
        raise ValueError(f"filter '{column}': a range needs numbers, the column contains {column_type}")
    if not wanted or not set(wanted) <= {"min", "max"}:
        raise ValueError(f"filter '{column}': a range has 'min', 'max' or both, not {sorted(map(str, wanted))}")
    low, high = (
        None if wanted.get(name) is None else float(_parse_value(column, wanted[name], column_type))
        for name in ("min", "max")
    )
    if low is not None and high is not None and low > high:
        raise ValueError(f"filter '{column}': min {low:g} is above max {high:g}")
    return Within(column, low, high)


def _parse_value(column: str, value: Any, column_type: str) -> Value:
    if isinstance(value, bool):
        if column_type == FLAG:
            return value
    elif isinstance(value, str):
        if column_type == TEXT:
            return value
    elif column_type == NUMBER and isinstance(value, (int, float)):
        with suppress(OverflowError):  # an int may have any number of digits
            if math.isfinite(value):
                return float(value)
    raise ValueError(f"filter '{column}': {value!r} cannot be compared, the column contains {column_type}")
