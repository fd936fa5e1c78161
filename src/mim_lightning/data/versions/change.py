"""What a version of prepared data changes: rows to add, replace and delete, or shards to write again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mim_lightning.data.manifest.content_hash import table_id
from mim_lightning.data.manifest.id_list import read_ids
from mim_lightning.io.paths import to_path_or_url


@dataclass(frozen=True)
class Tables:
    """Tables to add, and whether rows with an id that is there replace those."""

    products: str | None = None
    queries: str | None = None
    replace: bool = False


@dataclass(frozen=True)
class Deletion:
    """Products and queries to delete: ids, or the path of a table with a column product_id or query_id."""

    products: str | Sequence[str] = ()
    queries: str | Sequence[str] = ()


@dataclass(frozen=True)
class Change:
    """What a version changes.

    Args:
        add, delete: rows.
        compact: write shards again of which more than this fraction was removed; None: none.
    """

    add: Tables = field(default_factory=Tables)
    delete: Deletion = field(default_factory=Deletion)
    compact: float | None = None

    def __bool__(self) -> bool:
        add, delete = self.add, self.delete
        return bool(add.products or add.queries or delete.products or delete.queries) or self.compact is not None

    def describe(self) -> dict[str, Any]:
        """Return what tells the change from others; reads the tables."""
        tables = {"products": self.add.products, "queries": self.add.queries}
        found: dict[str, Any] = {f"add.{name}": table_id(to_path_or_url(path)) for name, path in tables.items() if path}
        if self.add.replace:
            found["add.replace"] = True
        for name, ids in (("products", self.delete.products), ("queries", self.delete.queries)):
            if ids:
                found[f"delete.{name}"] = _hash_ids(read_ids(ids, "product_id" if name == "products" else "query_id"))
        if self.compact is not None:
            found["compact"] = self.compact
        return found


def _hash_ids(ids: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(sorted(ids)).encode(), digest_size=8).hexdigest()
