"""Search an index with the model it was built with: encode the query, combine its parts, rank, explain the scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mim_lightning.fields import QUERY_IMAGE, QUERY_TEXT
from mim_lightning.inference.hub import is_hub_path
from mim_lightning.inference.loading import load
from mim_lightning.inference.model import LoadedModel
from mim_lightning.inference.quantization import base_fingerprint
from mim_lightning.io.file_name import validate_file_name, validate_inside
from mim_lightning.search.golden_samples import read_golden_samples, verify_golden_samples
from mim_lightning.search.index.factory import is_address, open_index
from mim_lightning.search.index.interface import ProductIndex
from mim_lightning.search.query import QueryVector, SearchQuery, combine, mean_direction, validate_weights

PART_OF = {QUERY_IMAGE: "image", QUERY_TEXT: "text"}  # tower -> part of a query; others go by their own name
DEFAULT_WEIGHTS = {"image": 1.0, "text": 1.0, "not_text": 0.5, "like": 1.0}
MODEL, GOLDEN_SAMPLES = "model", "canaries"  # keys of the card's `extra`: path of the model, name of the file


class QueryEncoder(Protocol):
    """What a search needs of a model."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def fusions(self) -> Mapping[str, Mapping[str, float]]: ...

    @property
    def reads_together(self) -> bool: ...

    def embed_parts(
        self, images: Sequence[Any], texts: Sequence[str], towers: Sequence[str | None], image_text: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class SearchHit:
    """A product, its score (inner product with the unit-length query), what each part of the query adds, its record."""

    product_id: str
    score: float
    parts: dict[str, float]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first, equal scores by product id; and the time of each stage."""

    hits: tuple[SearchHit, ...]
    encode_ms: float
    index_ms: float


class Searcher:
    """A model and an index built with it.

    Args:
        weights: default weights of the query's parts; those not given are the model's `query` fusion, then
            `DEFAULT_WEIGHTS`.

    Raises:
        ValueError: the index was built with another model (names both); an invalid weight.
    """

    def __init__(self, encoder: QueryEncoder, index: ProductIndex, weights: Mapping[str, float] | None = None) -> None:
        # quantized weights give nearly the same vectors; the card of an export says how nearly
        if base_fingerprint(encoder.fingerprint) != base_fingerprint(index.card.fingerprint):
            raise ValueError(
                f"the index was built with model {index.card.fingerprint}, this is {encoder.fingerprint}; "
                "give the model it was built with, or rebuild the index"
            )
        self.encoder, self.index = encoder, index
        fused = encoder.fusions.get("query", {})
        own = {PART_OF.get(tower, tower): weight for tower, weight in fused.items()}
        validate_weights(weights or {}, tuple(own))
        self.weights = {**DEFAULT_WEIGHTS, **own, **(weights or {})}

    def search(self, query: SearchQuery) -> SearchResult:
        """Return the best products for a query.

        Raises:
            ValueError: an unreadable image, a model without a text tower, a `like` or `where` unknown to the index.
        """
        started = time.perf_counter()
        vector = self.encode(query)
        encoded = time.perf_counter()
        hits = self.find(vector, query)
        return SearchResult(hits, 1e3 * (encoded - started), 1e3 * (time.perf_counter() - encoded))

    def encode(self, query: SearchQuery) -> QueryVector:
        """Return the parts of a query and their sum, without searching.

        A model whose tower reads image and text together embeds them so, unless they are given different weights.
        """
        parts: dict[str, np.ndarray] = {}
        weights = {**dict.fromkeys(query.fields, 1.0), **self.weights, **query.weights}
        weights["image_text"] = weights["image"]
        is_one = self.encoder.reads_together and query.images and weights["image"] == weights["text"]
        image_text = query.text if is_one else None
        texts = {name: text for name in ("text", "not_text") if (text := getattr(query, name))}
        if image_text:
            del texts["text"]
        towers = [None] * len(texts) + list(query.fields)
        texts |= query.fields
        together = {"image_text": image_text} if image_text else {}
        images_ND, texts_MD = self.encoder.embed_parts(list(query.images), list(texts.values()), towers, **together)
        if query.images:
            parts["image_text" if image_text else "image"] = mean_direction(images_ND)
        parts |= dict(zip(texts, texts_MD, strict=True))
        if query.like is not None:
            parts["like"] = mean_direction(self.index.vectors_of(query.like))
        return combine(parts, weights)

    def find(self, vector: QueryVector, query: SearchQuery) -> tuple[SearchHit, ...]:
        """Return the hits of an encoded query, without the product that similar ones are searched for."""
        num_wanted = query.num_hits + (query.like is not None)
        results = self.index.search(vector.vector[None], num_wanted, query.where, with_vectors=True)
        assert results.vectors is not None
        ids = results.product_ids[0].tolist()
        rows = [row for row, product_id in enumerate(ids) if product_id and product_id != query.like][: query.num_hits]
        records = self.index.products([ids[row] for row in rows])
        return tuple(
            SearchHit(ids[row], float(results.scores[0][row]), vector.contributions(results.vectors[0][row]), record)
            for row, record in zip(rows, records, strict=True)
        )


def open_searcher(
    place: str,
    checkpoint: str | None = None,
    weights: Mapping[str, float] | None = None,
    encoder: Callable[[LoadedModel], QueryEncoder] = lambda model: model,
    **options: Any,
) -> Searcher:
    """Open an index and its model, and verify that they still match.

    Args:
        place: folder, or Milvus address.
        checkpoint: where the model is; None: where it was when the index was built.
        weights: default weights of the query's parts, instead of the model's.
        encoder: returns an encoder between searches and model, such as one that batches.
        options: `device` and `precision` of the model.

    Raises:
        ValueError: index or model are missing, damaged, or do not match; or the golden samples get other vectors.
    """
    index = open_index(place)
    model = load(checkpoint or _model_path(index, place), **options)
    searcher = Searcher(encoder(model), index, weights)
    # search once: on first use, libraries load parts of themselves for seconds
    unit_vector = np.full((1, model.dimension), model.dimension**-0.5, dtype=np.float32)
    results = index.search(unit_vector, 1, with_vectors=True)
    index.products([str(product_id) for product_id in results.product_ids[0] if product_id])
    name = index.card.extra.get(GOLDEN_SAMPLES)
    if name and not is_address(place):
        path = Path(place) / validate_file_name(name, f"{place}: {GOLDEN_SAMPLES}")
        verify_golden_samples(model, read_golden_samples(validate_inside(Path(place), path) if path.exists() else path))
    return searcher


def _model_path(index: ProductIndex, place: str) -> str:
    path = index.card.extra.get(MODEL)
    if path is None or not (is_hub_path(path) or Path(path).exists()):
        fingerprint = index.card.fingerprint
        raise ValueError(f"{place}: its model {fingerprint} is not at {path}; give checkpoint=<where it is now>")
    return str(path)
