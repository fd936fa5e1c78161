"""Search where scores are combined: candidates of each pair of parts, scored together as an evaluation scores them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim_lightning.ids import hash_id
from mim_lightning.model.fusion import SCORE_PRODUCT, Fusion
from mim_lightning.model.score_combination import NUM_REFERENCE_PRODUCTS, ScoreCombination, combination_of
from mim_lightning.search.index.interface import ProductIndex
from mim_lightning.search.query import QueryVector

NUM_CANDIDATES = 200  # products that are fetched for each pair of parts, and by all of them together
REFERENCE = "reference_products"  # key of the card's `extra`


@dataclass(frozen=True)
class CombinedHit:
    """A product, its score, and the part of each part: the terms of a sum, or the factors of a product."""

    product_id: str
    score: float
    parts: dict[str, float]


@dataclass(frozen=True)
class CombinedScores:
    """Finds the products with the best combined scores in an index.

    The score of a product that is among the candidates is that of an evaluation of the same catalog; a product that
    is not among the best `NUM_CANDIDATES` of any part, nor of all together, is not found.
    """

    index: ProductIndex
    combination: ScoreCombination  # its query weights are replaced by those of each query
    product_parts: tuple[str, ...]
    splits_query: bool  # whether the parts of a query are compared one by one; else their fused vector
    reference: Sequence[Tensor]  # rows of the catalog, by part of a product

    @property
    def num_blocks(self) -> int:
        """Vectors of a product's row."""
        return len(self.product_parts)

    def normalize(self, row_E: np.ndarray) -> np.ndarray:
        """Return a row (J * D,) with each of its vectors at unit length, zero where it has none."""
        row_JD = row_E.reshape(self.num_blocks, -1)
        return (row_JD / np.linalg.norm(row_JD, axis=1, keepdims=True).clip(min=1e-12)).ravel()

    def find(self, query: QueryVector, num_hits: int, where: Mapping[str, Any] | None) -> list[CombinedHit]:
        """Return the best products of a query, best first, equal scores by id."""
        parts = query.parts if self.splits_query else {"query": (self.normalize(query.vector), 1.0)}
        parts = {name: (vector, weight) for name, (vector, weight) in parts.items() if weight}
        combination = replace(self.combination, query_weights=tuple(weight for _, weight in parts.values()))
        query_1E = torch.from_numpy(np.concatenate([vector for vector, _ in parts.values()])[None].astype(np.float32))
        results = self.index.search(
            self._candidate_queries([*parts.values()], combination, query_1E),
            max(num_hits, NUM_CANDIDATES),
            where,
            with_vectors=True,
        )
        assert results.vectors is not None
        is_found = results.product_ids != ""
        ids, rows_NE = results.product_ids[is_found].tolist(), torch.from_numpy(results.vectors[is_found])
        if not ids:
            return []
        z_IJN = combination.standardized(query_1E, rows_NE, self.reference)[:, :, 0]
        scores_N = combination.combine(z_IJN[:, :, None])[0]
        best: dict[str, int] = {}  # product -> its row with the best score
        for row in scores_N.argsort(descending=True, stable=True).tolist():
            best.setdefault(ids[row], row)
        order = sorted(best, key=lambda product_id: (-float(scores_N[best[product_id]]), product_id))[:num_hits]
        return [
            CombinedHit(
                product_id,
                float(scores_N[best[product_id]]),
                self._contributions(combination, z_IJN[..., best[product_id]], list(parts)),
            )
            for product_id in order
        ]

    def _candidate_queries(
        self, parts: Sequence[tuple[np.ndarray, float]], combination: ScoreCombination, query_1E: Tensor
    ) -> np.ndarray:
        """Return queries (n, J * D): each part of the query to each part of a product, and all together."""
        queries = [combination.linear_query(query_1E, self.reference)[0].numpy()]
        for vector, weight in parts:
            for block in range(self.num_blocks) if weight > 0 else ():
                one = np.zeros((self.num_blocks, len(vector) // self.num_blocks), np.float32)
                one[block] = vector.reshape(one.shape)[block]
                queries.append(one.ravel())
        return np.stack(queries)

    def _contributions(self, combination: ScoreCombination, z_IJ: Tensor, names: Sequence[str]) -> dict[str, float]:
        """Return what each part of the query adds to a score, or multiplies it by; of a fused query, of the product."""
        weights_IJ = combination.pair_weights().masked_fill(z_IJ.isnan(), 0.0)
        if combination.kind == SCORE_PRODUCT:
            powers_IJ = combination.factors(z_IJ.nan_to_num()) ** (weights_IJ / weights_IJ.sum().clamp(min=1e-12))
            per_part = powers_IJ.prod(dim=1) if self.splits_query else powers_IJ[0]
        else:
            terms_IJ = z_IJ.nan_to_num() * weights_IJ / weights_IJ.square().sum().sqrt().clamp(min=1e-12)
            per_part = terms_IJ.sum(dim=1) if self.splits_query else terms_IJ[0]
        return dict(zip(names if self.splits_query else self.product_parts, per_part.tolist(), strict=True))


def combine_scores(index: ProductIndex, fusions: Mapping[str, Any], query: str) -> CombinedScores | None:
    """Return how an index is searched where scores are combined, None where the inner product ranks.

    Args:
        index: of a tower or fusion.
        fusions: of the model that it was built with.
        query: name of the query side.

    Raises:
        ValueError: the two sides combine their scores in different ways, or the index has no reference products.
    """
    query_fusion, gallery = (
        fusion if isinstance(fusion := fusions.get(name), Fusion) else None for name in (query, index.card.gallery)
    )
    combination = combination_of(query_fusion, gallery)
    if combination is None:
        return None
    if not isinstance(ids := index.card.extra.get(REFERENCE), list):
        raise ValueError("the index names no products to standardize scores by; rebuild it")
    rows = [found for product_id in ids if (found := _vectors_of(index, product_id)) is not None]
    if not rows:
        raise ValueError("the products to standardize scores by were deleted from the index; rebuild it")
    has_blocks = gallery is not None and not gallery.needs_one_vector
    return CombinedScores(
        index,
        combination,
        tuple(gallery) if has_blocks and gallery is not None else (index.card.gallery,),
        query_fusion is not None and not query_fusion.needs_one_vector,
        combination.reference_parts(torch.from_numpy(np.concatenate(rows).astype(np.float32))),
    )


def reference_products(product_ids: Iterable[str]) -> list[str]:
    """Return the products over which scores are standardized: those that an evaluation of this catalog takes."""
    return sorted({*product_ids}, key=hash_id)[:NUM_REFERENCE_PRODUCTS]


def _vectors_of(index: ProductIndex, product_id: str) -> np.ndarray | None:
    try:
        return index.vectors_of(product_id)
    except ValueError:  # deleted since the index was built
        return None
