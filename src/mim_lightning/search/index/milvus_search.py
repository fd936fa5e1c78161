"""Asking Milvus for products: how wide to search, how many rows to fetch, and one hit a product.

Checked queries and an expression come in from `milvus_index`, lists of hits go out, best first. More rows are fetched
for a query until none that was not could matter; so no grouping is needed, which the embedded engine gets wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mim_lightning.search.index import milvus_client
from mim_lightning.search.index.kind import COARSE, num_candidates, num_lists
from mim_lightning.search.index.milvus_client import MilvusPlace
from mim_lightning.search.index.milvus_rows import VECTOR
from mim_lightning.search.index.products import ID
from mim_lightning.search.index.settings import IndexSettings

MOST_ROWS = 16_384  # a query, Milvus's own limit
_REQUEST_NUMBERS = 2**22  # queries times rows times dimension of an answer, a quarter of what Milvus sends at once
_SPARE_PRODUCTS = 200  # of so many products all rows are fetched at once
_ROUNDING = 1e-6
_LEAST_LISTS = 128  # the embedded engine makes so many, whatever it is told


class Hit(NamedTuple):
    """A product, its best row's score, and that row if vectors were asked for."""

    score: float
    product_id: str
    vector: np.ndarray | None


@dataclass(frozen=True)
class Reach:
    """What can be found: the rows and products of the collection, and how many rows a filter leaves."""

    num_rows: int
    num_products: int
    num_allowed: int

    @property
    def rows_a_product(self) -> int:
        return -(-self.num_rows // max(1, self.num_products))


@dataclass(frozen=True)
class MilvusSearch:
    """A collection, and how its index is searched."""

    place: MilvusPlace
    collection: str
    kind: str
    settings: IndexSettings

    def rank(
        self, query_QD: np.ndarray, num_wanted: int, filter_text: str, reach: Reach, with_vectors: bool
    ) -> list[list[Hit]]:
        """Return the best products of each query."""
        num_fetched = num_wanted + 1
        if reach.num_rows > reach.num_products:
            num_fetched += min(num_wanted, _SPARE_PRODUCTS) * reach.rows_a_product
        num_fetched = num_candidates(self.kind, self.settings, num_fetched)
        found: list[list[Hit]] = [[] for _ in query_QD]
        pending = list(range(len(query_QD)))
        while pending:
            num_fetched = min(num_fetched, MOST_ROWS)
            answers = self._fetch(query_QD[pending], num_fetched, filter_text, reach, with_vectors)
            unsure = []
            for query, answer in zip(pending, answers, strict=True):
                found[query] = _one_hit_a_product(answer)[:num_wanted]
                if num_fetched < min(MOST_ROWS, reach.num_allowed) and not _is_sure(found[query], answer, num_wanted):
                    unsure.append(query)
            pending, num_fetched = unsure, 4 * num_fetched
        return found

    def _fetch(
        self, query_QD: np.ndarray, num_fetched: int, filter_text: str, reach: Reach, with_vectors: bool
    ) -> list[list[Hit]]:
        needs_vectors = with_vectors or self.kind in COARSE
        per_row = query_QD.shape[1] if needs_vectors else 8
        per_request = max(1, _REQUEST_NUMBERS // (num_fetched * per_row))
        answers: list[list[Hit]] = []
        for start in range(0, len(query_QD), per_request):
            part_QD = query_QD[start : start + per_request]
            with self.place.told():
                raw = self.place.client.search(
                    self.collection,
                    data=part_QD,
                    limit=num_fetched,
                    filter=filter_text,
                    output_fields=[ID, VECTOR] if needs_vectors else [ID],
                    search_params={"metric_type": "IP", "params": self._effort(num_fetched, reach)},
                    anns_field=VECTOR,
                    timeout=milvus_client.PATIENCE,
                )
            answers += [self._hits(query, answer) for query, answer in zip(part_QD, raw, strict=True)]
        return answers

    def _effort(self, num_fetched: int, reach: Reach) -> dict[str, int]:
        """Return search parameters; they grow as a filter leaves less to find."""
        widening = reach.num_rows / max(1, reach.num_allowed)
        if self.kind == "hnsw":
            widest = max(self.settings.ef_search, MOST_ROWS)
            return {"ef": max(num_fetched, min(widest, math.ceil(self.settings.ef_search * widening)))}
        if self.kind in COARSE:
            lists = max(_LEAST_LISTS, num_lists(self.settings, reach.num_rows))
            # more rows than the lists read so far may hold are wanted
            widening = max(widening, num_fetched / max(1, reach.num_rows) * lists)
            return {"nprobe": min(lists, math.ceil(self.settings.nprobe * widening))}
        return {}

    def _hits(self, query_D: np.ndarray, answer: Sequence[Mapping[str, Any]]) -> list[Hit]:
        hits = []
        for row in answer:
            entity = row["entity"]
            vector = np.asarray(entity[VECTOR], dtype=np.float32) if VECTOR in entity else None
            # the engine's own score is that of a coarse code
            score = float(vector @ query_D) if vector is not None and self.kind in COARSE else float(row["distance"])
            hits.append(Hit(score, entity[ID], vector))
        return hits


def _one_hit_a_product(hits: Sequence[Hit]) -> list[Hit]:
    best: dict[str, Hit] = {}
    for hit in hits:
        if hit.product_id not in best or hit.score > best[hit.product_id].score:
            best[hit.product_id] = hit
    return sorted(best.values(), key=lambda hit: (-hit.score, hit.product_id))


def _is_sure(found: Sequence[Hit], answer: Sequence[Hit], num_wanted: int) -> bool:
    """Could no row that was not fetched be among the best, or equal to the last of them?"""
    return len(found) == num_wanted and found[-1].score > min(hit.score for hit in answer) + _ROUNDING
