"""The card of an index: what it is, the model it was built with, and its measured recall, as JSON beside the rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.io.file_name import validate_file_name
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts

# keys of `extra`: by folder of a catalog, the version in the index, and the digest of its content
CATALOG_VERSIONS, CATALOG_DIGESTS = "catalog_versions", "catalog_digests"
REBUILD = "rebuild the index"  # what mends a damaged file of an index
BACKENDS, METRIC = ("faiss", "milvus"), "inner_product"
_TYPES: dict[str, Any] = {"str": str, "int": int, "float": int | float, "Recall": object}  # by annotation


@dataclass(frozen=True)
class Recall:
    """Fraction of the true best `k` products that were found, over queries generated as `how` says."""

    k: int
    value: float
    num_queries: int  # 0 where every row is compared: exact, nothing to measure
    how: str


@dataclass(frozen=True)
class StoredFile:
    """A file of an index, with what is needed to verify it."""

    name: str
    num_bytes: int
    crc32: int


@dataclass(frozen=True)
class IndexCard:
    """Facts of an index; counts exclude deleted rows, which may still be in its files."""

    backend: str  # "faiss" or "milvus"
    kind: str  # flat, hnsw, ivf_pq or sq8
    why: str  # it has this kind
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
    metric: str = METRIC
    files: Mapping[str, StoredFile] = field(default_factory=dict)  # by segment and part
    extra: Mapping[str, Any] = field(default_factory=dict)  # of the caller: path of the model, catalog folders

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def validate_fingerprint(self, expected: str | None, place: str) -> None:
        """Raise ValueError unless the index was built with the model of this fingerprint; None: any model."""
        if expected is not None and expected != self.fingerprint:
            raise ValueError(
                f"{place}: was built with model {self.fingerprint}, but the model is {expected}; "
                f"{REBUILD}, or load its model"
            )


def describe_index(
    backend: str,
    kind: str,
    why: str,
    size: tuple[int, int],
    facts: ModelFacts,
    settings: IndexSettings,
    recall: Recall,
    extra: Mapping[str, Any],
    build_seconds: float = 0.0,
) -> IndexCard:
    """Return the card of a new index, its files not written yet; `size` is its number of products and rows."""
    return IndexCard(
        backend=backend,
        kind=kind,
        why=why,
        fingerprint=facts.fingerprint,
        gallery=facts.gallery,
        dimension=facts.dimension,
        num_products=size[0],
        num_rows=size[1],
        num_deleted=0,
        build_seconds=build_seconds,
        recall=recall,
        settings=asdict(settings),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        extra=extra,
    )


def parse_card(text: str, place: str) -> IndexCard:
    """Return the card that `IndexCard.to_json` wrote.

    Raises:
        ValueError: it is damaged, or of another version; names the place.
    """
    with errors_as_damaged_file(place, REBUILD):
        content = json.loads(text)
        files = {role: StoredFile(**stored) for role, stored in content["files"].items()}
        card = IndexCard(**{**content, "recall": Recall(**content["recall"]), "files": files})
        for stored in files.values():  # the card of a foreign index must not name files outside its folder
            validate_file_name(stored.name, "files")
        for part in (card, card.recall, *files.values()):
            _validate_types(part)
        _validate_values(card)
        _validate_extra(card.extra)
        IndexSettings(**card.settings)
    return card


def _validate_types(part: Any) -> None:
    for entry in fields(part):
        value = getattr(part, entry.name)
        if not isinstance(value, _TYPES.get(str(entry.type), Mapping)) or isinstance(value, bool):
            raise TypeError(f"{entry.name} is {value!r}")


def _validate_values(card: IndexCard) -> None:
    if card.backend not in BACKENDS or card.metric != METRIC:
        raise ValueError(f"backend {card.backend} and metric {card.metric}: there are {', '.join(BACKENDS)}, {METRIC}")
    counts = card.dimension, card.num_products, card.num_rows, card.num_deleted, card.recall.k, card.recall.num_queries
    if min(counts) < 0 or not 0 <= card.recall.value <= 1:
        raise ValueError("a count is negative, or the recall no fraction")


def _validate_extra(extra: Mapping[str, Any]) -> None:
    """Raise TypeError if a key that the search package reads has a value of another type."""
    catalogs, facets = extra.get("catalogues", []), extra.get("facets", {})
    if not isinstance(catalogs, list) or not all(isinstance(folder, str) for folder in catalogs):
        raise TypeError(f"extra.catalogues is {catalogs!r}")
    if not isinstance(facets, dict) or not all(map(_is_facet, facets.values())):
        raise TypeError("extra.facets contains no facets")
    for name, kind in ((CATALOG_VERSIONS, int), (CATALOG_DIGESTS, str)):
        found = extra.get(name, {})
        if not isinstance(found, dict) or not all(type(value) is kind for value in found.values()):
            raise TypeError(f"extra.{name} is {found!r}")
    reference = extra.get("reference_products", [])
    if not isinstance(reference, list) or not all(isinstance(product_id, str) for product_id in reference):
        raise TypeError("extra.reference_products is no list of ids")
    for name in ("model", "canaries"):
        if not isinstance(extra.get(name, ""), str | None):
            raise TypeError(f"extra.{name} is {extra[name]!r}")


def _is_facet(facet: Any) -> bool:
    if not isinstance(facet, dict):
        return False
    if "values" in facet:
        return isinstance(facet["values"], list) and all(isinstance(value, str) for value in facet["values"])
    limits = [facet.get("min"), facet.get("max")]
    return limits == [None, None] or all(isinstance(limit, int | float) for limit in limits)
