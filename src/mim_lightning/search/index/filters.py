"""Filters of a search: `{"category": "Fruit", "brand": ["a", "b"], "price": {"min": 1, "max": 20}}`.

What a shopper or an API sends comes in, checked conditions go out; `products` evaluates them with Arrow, and
`milvus_index` writes them as an expression. All conditions must hold; an empty cell meets none.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

TEXT, NUMBER, FLAG = "text", "numbers", "true or false"  # kinds of column, as they are told
Value = str | float | bool


@dataclass(frozen=True)
class OneOf:
    """The column holds one of the values."""

    column: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Within:
    """The column holds a number from `low` to `high`, both included; None: no such end."""

    column: str
    low: float | None
    high: float | None


Condition = OneOf | Within


def read_filter(where: Mapping[str, Any] | None, kinds: Mapping[str, str]) -> tuple[Condition, ...]:
    """Return the conditions of a filter, ordered by column, so that equal filters are equal.

    Args:
        where: column -> a value, a list of values, or a mapping with `min`, `max` or both; none at all: no condition.
        kinds: column -> TEXT, NUMBER or FLAG, of the columns there are.

    Raises:
        ValueError: an unknown column, with those there are; a value that cannot be compared with the column.
    """
    if not where:
        return ()
    if not isinstance(where, Mapping):
        raise ValueError(f"a filter is a mapping from column to value, not {type(where).__name__}")
    return tuple(_condition(column, where[column], kinds) for column in sorted(where, key=str))


def _condition(column: str, wanted: Any, kinds: Mapping[str, str]) -> Condition:
    if column not in kinds:
        close = difflib.get_close_matches(str(column), kinds, 1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"filter: no column '{column}'; there are {', '.join(sorted(kinds))}{hint}")
    if isinstance(wanted, Mapping):
        return _range(column, wanted, kinds[column])
    values = wanted if isinstance(wanted, (list, tuple, set, frozenset)) else [wanted]
    if not values:
        raise ValueError(f"filter '{column}': an empty list lets nothing through; give values, or leave it out")
    return OneOf(column, tuple(sorted({_value(column, value, kinds[column]) for value in values})))


def _range(column: str, wanted: Mapping[str, Any], kind: str) -> Within:
    if kind != NUMBER:
        raise ValueError(f"filter '{column}': a range needs numbers, the column holds {kind}")
    if not wanted or not set(wanted) <= {"min", "max"}:
        raise ValueError(f"filter '{column}': a range has 'min', 'max' or both, not {sorted(map(str, wanted))}")
    low, high = (_end(column, wanted.get(name), kind) for name in ("min", "max"))
    if low is not None and high is not None and low > high:
        raise ValueError(f"filter '{column}': min {low:g} is above max {high:g}")
    return Within(column, low, high)


def _end(column: str, value: Any, kind: str) -> float | None:
    return None if value is None else float(_value(column, value, kind))


def _value(column: str, value: Any, kind: str) -> Value:
    is_flag, is_number = isinstance(value, bool), isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == TEXT and isinstance(value, str):
        return value
    if kind == FLAG and is_flag:
        return bool(value)
    with suppress(OverflowError):  # a whole number may have any length
        if kind == NUMBER and is_number and math.isfinite(value):
            return float(value)
    raise ValueError(f"filter '{column}': {value!r} cannot be compared, the column holds {kind}")
