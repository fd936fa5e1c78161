"""Validation of config values against the type hints of the function or class that takes them.

Types that a config cannot contain are left to the constructor.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    types.NoneType: "null",
    list: "a list",
    dict: "a mapping",
}
LISTS = (list, tuple, Sequence, Iterable)
MAPPINGS = (dict, Mapping)


def validate_arguments(make: Callable[..., Any], values: Mapping[str, Any], section: str) -> None:
    """Validate values by argument name against the signature of `make`; other names are ignored.

    Raises:
        ValueError: naming the key, the value and what it may be.
    """
    target: Any = make
    try:
        hints = get_type_hints(target.__init__ if isinstance(make, type) else target)
    except (NameError, TypeError, AttributeError):  # a third party's, whose types exist only for type checkers
        return
    for name, value in values.items():
        validate_type(f"{section}.{name}", value, hints.get(name, Any))


def validate_type(key: str, value: Any, hint: Any) -> None:
    """Validate a value against a type.

    Raises:
        ValueError: naming the key, the value and what it may be.
    """
    kinds = list(_kinds(hint))
    if not any(_fits(value, kind) for kind in kinds):
        raise ValueError(f"{key}={'null' if value is None else value}: give {_describe(kinds)}")


def _kinds(hint: Any) -> Iterable[Any]:
    """Yield the alternatives of a type; a Literal's choices as they are."""
    if get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _kinds(part)
    elif get_origin(hint) is Literal:
        yield from get_args(hint)
    elif get_origin(hint) in LISTS:
        yield list
    elif get_origin(hint) in MAPPINGS:
        yield dict
    else:
        yield hint


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if isinstance(kind, str | int):  # a choice
        return type(value) is type(kind) and bool(value == kind)
    if kind is bool or kind is int:
        return type(value) is kind
    if kind is float:
        return type(value) in (int, float)
    if kind in (str, Path):  # a name such as 2024 is a number on the command line
        return isinstance(value, str | int | float) and not isinstance(value, bool)
    if kind is types.NoneType or kind is None:
        return value is None
    if kind is list or kind is dict:
        return isinstance(value, kind)
    if getattr(kind, "_is_protocol", False):  # isinstance cannot tell; a plain value is none of its objects
        return not isinstance(value, (str, int, float, list, types.NoneType))
    # a class: a config has a section for its objects, which may have been built; any other type is not checked
    return isinstance(value, (dict, kind)) if isinstance(kind, type) else True


def _describe(kinds: Sequence[Any]) -> str:
    found = [WORDS.get(kind) if isinstance(kind, type) else str(kind) for kind in kinds]
    words = list(dict.fromkeys(word for word in found if word))
    return " or ".join([", ".join(words[:-1])] * (len(words) > 1) + words[-1:])
