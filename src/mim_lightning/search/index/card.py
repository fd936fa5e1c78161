"""The card of an index: what it is, the model it was built with, and its measured recall, as JSON beside the rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np

from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.io.file_name import validate_file_name
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts
from mim_lightning.search.index.index_type import COARSE, bytes_per_row, disk_bytes_per_row
from mim_lightning.search.index.small_vectors import cut_vectors, round_vectors

# keys of `extra`: by folder of a catalog, the version in the index, and the digest of its content
CATALOG_VERSIONS, CATALOG_DIGESTS = "catalog_versions", "catalog_digests"
TRAINED_WIDTHS = "trained_widths"  # key of `extra`: at which the loss of the model counted, besides the full one
CROPS = "crops"  # key of `extra`: settings of the parts of images that have a vector too
COST = "size_cost"  # key of `extra`: the numbers below, measured by queries of `direction` in `num_rows`
COST_NUMBERS = ("ndcg", "low", "high", "difference", "difference_low", "difference_high", "queries_per_second")
REBUILD = "rebuild the index"  # what mends a damaged file of an index
BACKENDS, METRIC = ("faiss", "milvus"), "inner_product"
_TYPES: dict[str, Any] = {  # by annotation
    "str": str,
    "int": int,
    "float": int | float,
    "Recall": object,
    "Recall | None": object,
}


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
    kind: str  # flat, hnsw, ivf_pq, sq8, int8_flat, int8_hnsw, binary_flat or binary_ivf
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
    full_dimension: int = 0  # of the model's vectors, if the index has them cut; 0: it has them whole
    full_recall: Recall | None = None  # of the best products by the full vectors, where the index has smaller ones
    memory_bytes_per_row: int = 0  # of codes during a search; 0 in a card of an older version
    disk_bytes_per_row: int = 0  # of codes and vectors

    @property
    def precision(self) -> str:
        """Of the codes that are searched."""
        return str(self.settings.get("precision", "float32"))

    @property
    def model_dimension(self) -> int:
        return self.full_dimension or self.dimension

    def fit_vectors(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Return vectors of the model as the index has them: cut, and rounded if it keeps them as 8-bit integers."""
        vectors_ND = self.fit_queries(vectors_ND)
        is_rounded = self.kind in COARSE and self.settings.get("rescore") == "int8" and vectors_ND.ndim == 2
        return round_vectors(vectors_ND) if is_rounded else vectors_ND

    def fit_queries(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Return vectors cut to the dimension of the index; those that have it, or do not fit, as they are."""
        is_full = self.full_dimension and np.ndim(vectors_ND) == 2 and np.shape(vectors_ND)[1] == self.full_dimension
        return cut_vectors(vectors_ND, self.dimension) if is_full else vectors_ND

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
        dimension=settings.dimension or facts.dimension,
        num_products=size[0],
        num_rows=size[1],
        num_deleted=0,
        build_seconds=build_seconds,
        recall=recall,
        settings=asdict(settings),
        full_dimension=0 if settings.dimension in (None, facts.dimension) else facts.dimension,
        **describe_size(kind, settings, settings.dimension or facts.dimension),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        extra=extra,
    )


def describe_size(kind: str, settings: IndexSettings, dimension: int) -> dict[str, Any]:
    """Return the bytes of a row by the names that a card has for them."""
    return {
        "memory_bytes_per_row": bytes_per_row(kind, settings, dimension),
        "disk_bytes_per_row": disk_bytes_per_row(kind, settings, dimension),
    }


def parse_card(text: str, place: str) -> IndexCard:
    """Return the card that `IndexCard.to_json` wrote.

    Raises:
        ValueError: it is damaged, or of another version; names the place.
    """
    with errors_as_damaged_file(place, REBUILD):
        content = json.loads(text)
        files = {role: StoredFile(**stored) for role, stored in content["files"].items()}
        recalls = {"recall": Recall(**content["recall"])}
        if content.get("full_recall") is not None:
            recalls["full_recall"] = Recall(**content["full_recall"])
        card = IndexCard(**{**content, **recalls, "files": files})
        for stored in files.values():  # the card of a foreign index must not name files outside its folder
            validate_file_name(stored.name, "files")
        for part in (card, *recalls.values(), *files.values()):
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
    recalls = [found for found in (card.recall, card.full_recall) if found is not None]
    counts = card.dimension, card.num_products, card.num_rows, card.num_deleted
    bytes_of_row = card.full_dimension, card.memory_bytes_per_row, card.disk_bytes_per_row
    counts_of_recall = [count for found in recalls for count in (found.k, found.num_queries)]
    if min(*counts, *bytes_of_row, *counts_of_recall) < 0 or not all(0 <= found.value <= 1 for found in recalls):
        raise ValueError("a count is negative, or the recall no fraction")
    if card.full_dimension and card.full_dimension <= card.dimension:
        raise ValueError(f"{card.dimension} numbers are no cut of {card.full_dimension}")


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
    widths = extra.get(TRAINED_WIDTHS, [])
    if not isinstance(widths, list) or not all(type(width) is int for width in widths):
        raise TypeError(f"extra.{TRAINED_WIDTHS} is {widths!r}")
    crops, cost = extra.get(CROPS, {}), extra.get(COST)
    kinds = {"grid": int, "boxes": str}  # one of them
    if not isinstance(crops, dict) or len(crops) > 1 or any(type(crops[key]) is not kinds.get(key) for key in crops):
        raise TypeError(f"extra.{CROPS} is {crops!r}")
    if cost is not None and not _is_cost(cost):
        raise TypeError(f"extra.{COST} is {cost!r}")
    reference = extra.get("reference_products", [])
    if not isinstance(reference, list) or not all(isinstance(product_id, str) for product_id in reference):
        raise TypeError("extra.reference_products is no list of ids")
    for name in ("model", "canaries"):
        if not isinstance(extra.get(name, ""), str | None):
            raise TypeError(f"extra.{name} is {extra[name]!r}")


def _is_cost(cost: Any) -> bool:
    if not isinstance(cost, dict) or not isinstance(cost.get("direction"), str):
        return False
    numbers = [cost.get(name) for name in ("num_rows", *COST_NUMBERS)]
    return all(isinstance(number, int | float) for number in numbers)  # nan: an interval of too few queries


def _is_facet(facet: Any) -> bool:
    if not isinstance(facet, dict):
        return False
    if "values" in facet:
        return isinstance(facet["values"], list) and all(isinstance(value, str) for value in facet["values"])
    limits = [facet.get("min"), facet.get("max")]
    return limits == [None, None] or all(isinstance(limit, int | float) for limit in limits)
