"""JSON from strangers: read strictly, or refused in one line.

Python's own reader takes more than JSON has (NaN, a key twice, half a surrogate pair) and gives up on deep nesting with
a RecursionError; whatever comes out of here can be compared, encoded and sent back.
"""

from __future__ import annotations

import json
import math
from typing import Any

from mim_lightning.search.service.limits import RefusedError

MAX_DEPTH = 16  # of lists and objects within each other


def read_json(name: str, text: str | bytes) -> Any:
    """Return the value of a JSON text; `name` is the field that messages speak of.

    Raises:
        RefusedError: not JSON, NaN or infinite, nested too deep, a key twice, or half a surrogate pair.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except RecursionError:
        raise RefusedError(422, f"{name}: nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise RefusedError(422, f"{name}: not JSON ({error})") from error
    _check(name, value)
    return value


def read_object(name: str, text: str | bytes) -> dict[str, Any]:
    """Return the value of a JSON text that must be an object."""
    value = read_json(name, text)
    if not isinstance(value, dict):
        raise RefusedError(422, f"{name}: must be a JSON object")
    return value


def is_encodable(text: str) -> bool:
    """Is this text free of half surrogate pairs, which no encoding can write?"""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()  # counting each name would take seconds of a body of 64 kB
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"'{twice}' stands there twice")
    return found


def _check(name: str, value: Any) -> None:
    """Look through a value level by level: recursion is what this guards against."""
    level = [value]
    for _ in range(MAX_DEPTH):
        for item in level:
            if isinstance(item, str) and not is_encodable(item):
                raise RefusedError(422, f"{name}: holds half a surrogate pair")
            if isinstance(item, float) and not math.isfinite(item):
                raise RefusedError(422, f"{name}: a number is too large")
        below = [item for item in level if isinstance(item, dict | list)]
        level = [part for item in below for part in (item if isinstance(item, list) else [*item, *item.values()])]
        if not below:
            return
    raise RefusedError(422, f"{name}: nested deeper than {MAX_DEPTH} levels")
