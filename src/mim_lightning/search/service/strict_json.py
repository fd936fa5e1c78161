"""Strict parsing of JSON that clients send.

Python's own parser accepts NaN, duplicate keys and lone surrogates, and ends deep nesting with a RecursionError. Values
that are returned here can be compared, encoded and sent back.
"""

from __future__ import annotations

import json
import math
from typing import Any

from mim_lightning.search.service.request_limits import RefusedError

MAX_DEPTH = 16  # of nested lists and objects


def read_object(name: str, text: str | bytes) -> dict[str, Any]:
    """Return a JSON object; `name` is the field that error messages name.

    Raises:
        RefusedError: no JSON object, NaN or infinite, nested too deep, a duplicate key, or a lone surrogate.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except RecursionError:
        raise RefusedError(422, f"{name}: nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise RefusedError(422, f"{name}: not JSON ({error})") from error
    _check(name, value)
    if not isinstance(value, dict):
        raise RefusedError(422, f"{name}: must be a JSON object")
    return value


def is_encodable(text: str) -> bool:
    """Return whether a text is free of lone surrogates, which cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()  # counting each name would take seconds for a body of 64 kB
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key '{twice}'")
    return found


def _check(name: str, value: Any) -> None:
    """Check a value level by level, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        for item in level:
            if isinstance(item, str) and not is_encodable(item):
                raise RefusedError(422, f"{name}: contains a lone surrogate")
            if isinstance(item, float) and not math.isfinite(item):
                raise RefusedError(422, f"{name}: a number is too large")
        nested = [item for item in level if isinstance(item, dict | list)]
        level = [part for item in nested for part in (item if isinstance(item, list) else [*item, *item.values()])]
        if not nested:
            return
    raise RefusedError(422, f"{name}: nested deeper than {MAX_DEPTH} levels")
