"""Search in a Milvus collection: how wide to search, how many rows to fetch, one hit per product.

Rows are fetched for a query until no row that was not fetched could change its answer. Milvus's own grouping by
product is not used: the embedded engine gets it wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mim_lightning.search.index import milvus_client
from mim_lightning.search.index.index_settings import IndexSettings
from mim_lightning.search.index.index_type import BINARY, COARSE, LISTS, num_candidates, num_lists
from mim_lightning.search.index.milvus_client import MilvusCollection
from mim_lightning.search.index.milvus_rows import BITS, VECTOR
from mim_lightning.search.index.product_ranking import take_best_rows
from mim_lightning.search.index.products import ID
from mim_lightning.search.index.small_vectors import encode_signs

MAX_ROWS = 16_384  # per query, a limit of Milvus
_REQUEST_NUMBERS = 2**22  # queries * rows * dimension of an answer, a quarter of what Milvus sends at once
_FULLY_FETCHED = 200  # products; all rows of so many products are fetched at once
_MIN_LISTS = 128  # the embedded engine makes so many, whatever the settings say


class RowHit(NamedTuple):
    """A row with its score, its product, and its vector if it was requested."""

    score: float
    product_id: str
    vector: np.ndarray | None


@dataclass(frozen=True)
class CollectionSize:
    """Rows and products of a collection, and the number of rows that pass a filter."""

    num_rows: int
    num_products: int
    num_allowed: int


@dataclass(frozen=True)
class MilvusSearch:
    """A collection, and how its index is searched."""

    collection: MilvusCollection
    name: str  # of the collection behind the alias
    kind: str
    settings: IndexSettings

    def rank(
        self, query_QD: np.ndarray, num_wanted: int, expression: str, size: CollectionSize, with_vectors: bool
    ) -> list[list[RowHit]]:
        """Return the best row of each of the best products of each query; under a filter perhaps of fewer.

        Raises:
            ValueError: these products have more rows than Milvus returns for a query.
        """
        num_fetched, num_there = num_wanted + 1, min(num_wanted, size.num_products)
        if size.num_rows > size.num_products:
            num_fetched += min(num_wanted, _FULLY_FETCHED) * -(-size.num_rows // max(1, size.num_products))
        num_fetched = num_candidates(self.kind, self.settings, num_fetched)
        best: list[list[RowHit]] = [[] for _ in query_QD]
        pending = list(range(len(query_QD)))
        while pending:
            num_fetched = min(num_fetched, MAX_ROWS)
            fetched = self._fetch(query_QD[pending], num_fetched, expression, size, with_vectors)
            uncertain = []
            for query, hits in zip(pending, fetched, strict=True):
                best[query], is_certain = _take_best(hits, num_wanted)
                if num_fetched < min(MAX_ROWS, size.num_allowed) and not is_certain:
                    uncertain.append(query)
                # how many products pass a filter is not known
                elif len(best[query]) < num_there and len(hits) == MAX_ROWS < size.num_allowed == size.num_rows:
                    raise ValueError(
                        f"k={num_wanted}: the best {MAX_ROWS:,} rows, the most that Milvus returns for a query, are of "
                        f"{len(best[query]):,} products; ask for no more than these"
                    )
            pending, num_fetched = uncertain, 4 * num_fetched
        return best

    def _fetch(
        self, query_QD: np.ndarray, num_fetched: int, expression: str, size: CollectionSize, with_vectors: bool
    ) -> list[list[RowHit]]:
        needs_vectors = with_vectors or self.kind in COARSE
        numbers_per_row = query_QD.shape[1] if needs_vectors else 8
        batch = max(1, _REQUEST_NUMBERS // (num_fetched * numbers_per_row))
        fetched: list[list[RowHit]] = []
        for start in range(0, len(query_QD), batch):
            part_QD = query_QD[start : start + batch]
            is_binary = self.kind in BINARY
            data = [bits.tobytes() for bits in encode_signs(part_QD)] if is_binary else part_QD
            metric = "HAMMING" if is_binary else "IP"
            with self.collection.errors_as():
                answers = self.collection.client.search(
                    self.name,
                    data=data,
                    limit=num_fetched,
                    filter=expression,
                    output_fields=[ID, VECTOR] if needs_vectors else [ID],
                    search_params={"metric_type": metric, "params": self._effort(num_fetched, size)},
                    anns_field=BITS if is_binary else VECTOR,
                    timeout=milvus_client.TIMEOUT,
                )
            fetched += [self._to_hits(query, answer) for query, answer in zip(part_QD, answers, strict=True)]
        return fetched

    def _effort(self, num_fetched: int, size: CollectionSize) -> dict[str, int]:
        """Return search parameters; they grow as a filter leaves fewer rows."""
        widening = size.num_rows / max(1, size.num_allowed)
        if self.kind == "hnsw":
            limit = max(self.settings.ef_search, MAX_ROWS)
            return {"ef": max(num_fetched, min(limit, math.ceil(self.settings.ef_search * widening)))}
        if self.kind in LISTS:
            lists = max(_MIN_LISTS, num_lists(self.settings, size.num_rows))
            # more rows may be requested than the lists read so far contain
            widening = max(widening, num_fetched / max(1, size.num_rows) * lists)
            return {"nprobe": min(lists, math.ceil(self.settings.nprobe * widening))}
        return {}

    def _to_hits(self, query_D: np.ndarray, answer: Sequence[Mapping[str, Any]]) -> list[RowHit]:
        hits = []
        for row in answer:
            entity = row["entity"]
            vector = np.asarray(entity[VECTOR], dtype=np.float32) if VECTOR in entity else None
            # the engine's own score is that of a coarse code
            score = float(vector @ query_D) if vector is not None and self.kind in COARSE else float(row["distance"])
            hits.append(RowHit(score, entity[ID], vector))
        return hits


def _take_best(hits: Sequence[RowHit], num_wanted: int) -> tuple[list[RowHit], bool]:
    """Return the best hit of each of the best products, and whether no row that was not fetched can change them."""
    if not hits:
        return [], False
    scores_1F = np.array([[hit.score for hit in hits]], dtype=np.float32)
    _, products_F = np.unique(np.array([hit.product_id for hit in hits], dtype=object), return_inverse=True)
    ranked, is_certain = take_best_rows(scores_1F, np.arange(len(hits))[None], products_F.reshape(1, -1), num_wanted)
    return [hits[row] for row in ranked.rows[0] if row >= 0], bool(is_certain[0])
