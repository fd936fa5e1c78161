"""A small catalog for tests of an index, and what a search in it must find, by plain Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mim_lightning.search.index.factory import create_index
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts
from mim_lightning.search.index.interface import IndexHits, ProductIndex

DIMENSION = 6
FACTS = ModelFacts("0123456789abcdef", "product", DIMENSION)
Answer = list[list[tuple[str, float]]]


def quantized(rows: int, seed: int, levels: int = 3, dimension: int = DIMENSION) -> np.ndarray:
    """Return vectors whose inner products are exact in float32, so that ties are real."""
    return (np.random.default_rng(seed).integers(-levels, levels + 1, (rows, dimension)) / 4).astype(np.float32)


@dataclass
class Shop:
    """Rows as an index is given them; a plain model of what an index should hold."""

    vectors: np.ndarray  # (N, D)
    ids: list[str]
    records: dict[str, dict[str, Any]]

    @property
    def table(self) -> pa.Table:
        return pa.Table.from_pylist(list(self.records.values()))

    def build(self, place: Any, settings: IndexSettings | None = None, **more: Any) -> ProductIndex:
        facts = ModelFacts(FACTS.fingerprint, FACTS.gallery, self.vectors.shape[1])
        return create_index(self.vectors, self.ids, self.table, settings or IndexSettings(), facts, place, **more)

    def without(self, product_ids: Sequence[str]) -> Shop:
        keep = [row for row, product_id in enumerate(self.ids) if product_id not in product_ids]
        records = {key: record for key, record in self.records.items() if key not in product_ids}
        return Shop(self.vectors[keep], [self.ids[row] for row in keep], records)

    def updated(self, other: Shop) -> Shop:
        rest = self.without(list(other.records))
        return Shop(
            np.concatenate([rest.vectors, other.vectors]), rest.ids + other.ids, {**rest.records, **other.records}
        )

    def answer(self, queries: np.ndarray, k: int, allows: Callable[[dict[str, Any]], bool] = lambda _: True) -> Answer:
        """Sort every allowed product of every query by (best score descending, id ascending)."""
        answers = []
        for query in queries.astype(np.float64).tolist():
            best: dict[str, float] = {}
            for vector, product_id in zip(self.vectors.astype(np.float64).tolist(), self.ids, strict=True):
                if allows(self.records[product_id]):
                    score = sum(a * b for a, b in zip(query, vector, strict=True))
                    best[product_id] = max(score, best.get(product_id, score))
            answers.append(sorted(best.items(), key=lambda hit: (-hit[1], hit[0]))[:k])
        return answers


def make_shop(num_rows: int, num_products: int, seed: int = 0, levels: int = 3, prefix: str = "p") -> Shop:
    """Give each product at least one row, in random order, and columns to filter by; every fifth price is empty."""
    generator = np.random.default_rng(seed)
    numbers = generator.integers(num_products, size=num_rows)
    numbers[generator.permutation(num_rows)[:num_products]] = np.arange(num_products)
    records = {
        f"{prefix}{number:03d}": {
            "product_id": f"{prefix}{number:03d}",
            "title": f"thing {number}",
            "category": ("Fruit", "Milk", "Bread & Co")[number % 3],
            "price": "" if number % 5 == 0 else str(number / 2),
            "in_stock": number % 2 == 0,
        }
        for number in generator.permutation(num_products).tolist()
    }
    return Shop(quantized(num_rows, seed + 1, levels), [f"{prefix}{number:03d}" for number in numbers], records)


def as_lists(found: IndexHits) -> Answer:
    """Return the hits in the form of the naive answer."""
    answers = []
    for ids, scores in zip(found.product_ids, found.scores, strict=True):
        assert all(score == -np.inf for product_id, score in zip(ids, scores, strict=True) if not product_id)
        answers.append([(str(i), float(s)) for i, s in zip(ids, scores, strict=True) if i])
    return answers
