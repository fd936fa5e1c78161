"""Queries to hits: encode what was asked, combine it, ask the index, say what each part contributed.

An encoder (a loaded model, or the service's batching one) and a product index come in; the search door, the service
and the page call `search`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mim_lightning.fields import QUERY_IMAGE, QUERY_TEXT
from mim_lightning.inference.quantization import base_of
from mim_lightning.search.index.product_index import ProductIndex
from mim_lightning.search.query import QueryVector, SearchQuery, check_weights, combine, mean_direction

DEFAULT_WEIGHTS = {"image": 1.0, "text": 1.0, "not_text": 0.5, "like": 1.0}


class QueryEncoder(Protocol):
    """What a search needs of a model."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def fusions(self) -> Mapping[str, Mapping[str, float]]: ...

    def embed_parts(self, images: Sequence[Any], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class SearchHit:
    """One product: its score (inner product with the query at unit length), the parts it is made of, what is known."""

    product_id: str
    score: float
    parts: dict[str, float]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first, equal scores by product id; and where the time went."""

    hits: tuple[SearchHit, ...]
    encode_ms: float
    index_ms: float


class Searcher:
    """A model and an index made with it.

    Args:
        weights: of the parts, where a query names none; what it leaves out is the model's own `query` fusion, and
            `DEFAULT_WEIGHTS` beyond that.

    Raises:
        ValueError: the index was made with another model, and names both; a weight is no weight.
    """

    def __init__(self, encoder: QueryEncoder, index: ProductIndex, weights: Mapping[str, float] | None = None) -> None:
        # rounded weights give nearly the same vectors; an export's card says how nearly
        if base_of(encoder.fingerprint) != base_of(index.card.fingerprint):
            raise ValueError(
                f"the index was made with model {index.card.fingerprint}, this is {encoder.fingerprint}; "
                "give the model it was made with, or build the index anew"
            )
        self.encoder, self.index = encoder, index
        fused = encoder.fusions.get("query", {})
        own = {part: fused[tower] for part, tower in (("image", QUERY_IMAGE), ("text", QUERY_TEXT)) if tower in fused}
        check_weights(weights or {})
        self.weights = {**DEFAULT_WEIGHTS, **own, **(weights or {})}

    def search(self, query: SearchQuery) -> SearchResult:
        """Return the products that answer a query.

        Raises:
            ValueError: an image cannot be read, the model has no text tower, `like` or `where` name what the index
                does not have.
        """
        started = time.perf_counter()
        vector = self.encode(query)
        encoded = time.perf_counter()
        hits = self.find(vector, query)
        return SearchResult(hits, 1e3 * (encoded - started), 1e3 * (time.perf_counter() - encoded))

    def encode(self, query: SearchQuery) -> QueryVector:
        """Return the query's parts and their sum; nothing is searched yet."""
        parts: dict[str, np.ndarray] = {}
        texts = {name: text for name in ("text", "not_text") if (text := getattr(query, name))}
        images_ND, texts_MD = self.encoder.embed_parts(list(query.images), list(texts.values()))
        if query.images:
            parts["image"] = mean_direction(images_ND)
        parts |= dict(zip(texts, texts_MD, strict=True))
        if query.like is not None:
            parts["like"] = mean_direction(self.index.vectors_of(query.like))
        return combine(parts, {**self.weights, **query.weights})

    def find(self, vector: QueryVector, query: SearchQuery) -> tuple[SearchHit, ...]:
        """Return the hits of an encoded query; the product that it goes on from is not among them."""
        num_wanted = query.num_hits + (query.like is not None)
        found = self.index.search(vector.vector[None], num_wanted, query.where, with_vectors=True)
        assert found.vectors is not None
        rows = [row for row, found_id in enumerate(found.product_ids[0]) if found_id and found_id != query.like][
            : query.num_hits
        ]
        ids = [str(found.product_ids[0][row]) for row in rows]
        return tuple(
            SearchHit(
                product_id=product_id,
                score=float(found.scores[0][row]),
                parts=vector.contributions(found.vectors[0][row]),
                metadata=facts,
            )
            for row, product_id, facts in zip(rows, ids, self.index.products(ids), strict=True)
        )
