"""The card of an index: what it is, what made it and how good it was found to be, as JSON beside the rows.

Both backends write one; whoever opens an index reads it first and compares its fingerprint with the model's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.io.file_name import validate_file_name
from mim_lightning.search.index.rows import IndexRows
from mim_lightning.search.index.settings import IndexSettings, ModelFacts

AGAIN = "build the index anew"
_KINDS: dict[str, Any] = {"str": str, "int": int, "float": int | float, "Recall": object}  # by annotation


@dataclass(frozen=True)
class Recall:
    """Share of the true best `k` products that were found, over queries that were made as `how` says."""

    k: int
    value: float
    num_queries: int  # 0 where every row is compared, so that there is nothing to measure
    how: str


@dataclass(frozen=True)
class StoredFile:
    """A file of an index: enough to tell that it is whole."""

    name: str
    num_bytes: int
    crc32: int


@dataclass(frozen=True)
class IndexCard:
    """Facts of an index; counts are of what can be found, deleted rows still in its files come besides."""

    backend: str  # "faiss" or "milvus"
    kind: str  # flat, hnsw, ivf_pq or sq8
    why: str  # of this kind
    fingerprint: str
    gallery: str
    dimension: int
    num_products: int
    num_rows: int
    num_deleted: int
    build_seconds: float
    recall: Recall
    settings: Mapping[str, Any]
    created: str  # ISO 8601, UTC
    metric: str = "inner_product"
    files: Mapping[str, StoredFile] = field(default_factory=dict)  # by what they hold
    extra: Mapping[str, Any] = field(default_factory=dict)  # of the caller: catalogue folders, path of the model

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def check_fingerprint(self, expected: str | None, place: str) -> None:
        """Raise ValueError, naming both, if a model of another fingerprint wants to search here; None: no matter."""
        if expected is not None and expected != self.fingerprint:
            raise ValueError(
                f"{place}: was built with model {self.fingerprint}, the model at hand is {expected}; "
                "build the index anew, or load its model"
            )


def describe_index(
    backend: str,
    kind: str,
    why: str,
    rows: IndexRows,
    facts: ModelFacts,
    settings: IndexSettings,
    recall: Recall,
    seconds: float,
    extra: Mapping[str, Any],
) -> IndexCard:
    """Return the card of an index that was just built; its files are not written yet."""
    return IndexCard(
        backend=backend,
        kind=kind,
        why=why,
        fingerprint=facts.fingerprint,
        gallery=facts.gallery,
        dimension=facts.dimension,
        num_products=len(rows.products),
        num_rows=len(rows.vectors),
        num_deleted=0,
        build_seconds=seconds,
        recall=recall,
        settings=asdict(settings),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        extra=extra,
    )


def read_card(text: str, place: str) -> IndexCard:
    """Return the card that `IndexCard.to_json` wrote.

    Raises:
        ValueError: it is damaged, or of another version; names the place.
    """
    with errors_as_damaged_file(place, AGAIN):
        content = json.loads(text)
        files = {role: StoredFile(**stored) for role, stored in content["files"].items()}
        card = IndexCard(**{**content, "recall": Recall(**content["recall"]), "files": files})
        for stored in files.values():  # a card of somebody else's must not name what lies outside its folder
            validate_file_name(stored.name, "files")
        for facts in (card, card.recall, *files.values()):
            _check_kinds(facts)
        _check_extra(card.extra)
        IndexSettings(**card.settings)
    return card


def _check_kinds(facts: Any) -> None:
    for entry in fields(facts):
        value = getattr(facts, entry.name)
        if not isinstance(value, _KINDS.get(str(entry.type), Mapping)) or isinstance(value, bool):
            raise TypeError(f"{entry.name} is {value!r}")


def _check_extra(extra: Mapping[str, Any]) -> None:
    """Raise a TypeError unless what callers keep in a card, as far as it is there, is what they will take it for."""
    catalogues, facets = extra.get("catalogues", []), extra.get("facets", {})
    if not isinstance(catalogues, list) or not all(isinstance(folder, str) for folder in catalogues):
        raise TypeError(f"extra.catalogues is {catalogues!r}")
    if not isinstance(facets, dict) or not all(map(_is_facet, facets.values())):
        raise TypeError("extra.facets holds no facets")
    for name in ("model", "canaries"):
        if not isinstance(extra.get(name, ""), str | None):
            raise TypeError(f"extra.{name} is {extra[name]!r}")


def _is_facet(facet: Any) -> bool:
    if not isinstance(facet, dict):
        return False
    if "values" in facet:
        return isinstance(facet["values"], list) and all(isinstance(value, str) for value in facet["values"])
    ends = [facet.get("min"), facet.get("max")]
    return ends == [None, None] or all(isinstance(end, int | float) for end in ends)
