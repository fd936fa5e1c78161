"""The name of a data set in the names of runs.

Built-in sets have a name; a user's own set is named after its folder or table instead of its config option.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

OPTIONS = ("shards", "manifest", "huggingface", "webdataset")  # of the group `data`, for any set of a kind
# what is said of files of any set: the folder that holds them tells more
ROLES = frozenset(
    (
        *("product", "products", "query", "queries", "catalog", "catalogue", "items", "table", "tables", "data"),
        *("train", "training", "val", "valid", "validation", "test", "dataset", "shards", "prepared"),
    )
)
LONGEST = 40


def name_set(data: Mapping[str, Any]) -> str:
    """Return the set's name: a given one, that of its prepared folder, or that of its tables.

    A given name is one that differs from the option's, and a given folder one that does not end in it.
    """
    name = str(data["name"])
    if name not in OPTIONS:
        return name
    folder = PurePath(str(data["folder"])).name
    default = f"{name}{data.get('splits', {}).get('label', '')}"
    if data["source"] is None or folder != default:
        return _name_of(str(data["folder"])) or name
    return next((word for path in _paths(data["source"]) if (word := _name_of(path))), name)


def _paths(source: Mapping[str, Any]) -> Iterator[str]:
    """Yield where the tables of a source lie, the products first."""
    for key in ("products", "queries", "shards"):
        value = source.get(key)
        for part in value.values() if isinstance(value, Mapping) else [value]:
            if isinstance(part, str):
                yield part


def _name_of(path: str) -> str:
    """Return the last part of a path that is a name of its own; of one that has none, the last part."""
    *folders, file = [part for part in path.split("://")[-1].split("/") if part not in ("", ".", "..")] or [""]
    words = [_as_word(part) for part in (*folders, file.split(".")[0]) if not re.search(r"[*{\[]", part)]
    own = [word for word in words if word and word.lower() not in ROLES]
    return (own or words or [""])[-1]


def _as_word(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.")[:LONGEST]
