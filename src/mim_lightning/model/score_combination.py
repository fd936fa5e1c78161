"""Combination of similarities: the towers of a query and of a product are compared one by one, and the scores combined.

Where a sum of vectors lets a tower with a wide spread of similarities decide alone, a combination weighs each by its
own spread over the catalog. A product needs a vector of each tower that is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mim_lightning.model.fusion import SCORE_PRODUCT, Fusion
from mim_lightning.precision import inner_products

NUM_REFERENCE_PRODUCTS = 1000  # of a catalog, over which similarities are standardized
_MIN_DEVIATION = 1e-6
_WORST_SUM = -1e9  # of a pair of rows that nothing compares; finite, as -inf stands for no product


@dataclass(frozen=True)
class ScoreCombination:
    """Scores products by the similarities of I parts of a query and J parts of a product, each (D,), side by side.

    The similarity of each pair of parts is standardized over reference products, for each query: less its mean, over
    its standard deviation. `standardized_sum` adds them, by weight, to unit variance; `score_product` multiplies what
    they exceed a floor by, to the power of their weights, which sum to 1. A pair that lacks a part does not count, nor
    does one of a part that no reference product has; where no pair counts, the score is the worst.

    Source: the sum is Stouffer's, of z-scores; the product, with a floor that stands for the smallest similarity, is of
    Psomas et al. 2025, "Instance-Level Composed Image Retrieval" (BASIC, arXiv 2510.25387), there with a floor measured
    on made-up data. With `floor` None it is their "Text x Image": similarities as they are, 0 where negative.
    """

    kind: str
    query_weights: tuple[float, ...]  # (I,) a part with a negative weight is to be avoided
    product_weights: tuple[float, ...]  # (J,)
    floor: float | None = 3.0  # standard deviations below the mean where a product has its 0

    def __call__(self, query_QE: Tensor, gallery_NE: Tensor, reference: Sequence[Tensor]) -> Tensor:
        """Return the scores (Q, N), without gradients. On a CPU each depends on its two rows and the reference alone.

        Args:
            query_QE: (Q, I * D), or (Q, I * J * D) where each part of a product is compared with a vector of its own.
            gallery_NE: (N, J * D). A part of zeros is absent, here and there.
            reference: see `reference_parts`.
        """
        return self.combine(self.standardized(query_QE, gallery_NE, reference))

    def standardized(self, query_QE: Tensor, gallery_NE: Tensor, reference: Sequence[Tensor]) -> Tensor:
        """Return the standardized similarities (I, J, Q, N) of all pairs of parts, nan for a pair that lacks one."""
        num_parts = len(self.query_weights), len(self.product_weights)
        found = query_QE.new_empty(*num_parts, len(query_QE), len(gallery_NE))
        for j, (rows_ND, known_MD) in enumerate(zip(self._parts(gallery_NE), reference, strict=True)):
            is_there_N = rows_ND.any(dim=1)
            for i, weight in enumerate(self.query_weights):
                query_QD = self._query_part(query_QE, rows_ND.shape[1], i, j)
                z_QN = inner_products(query_QD, rows_ND)
                if self.floor is not None or self.kind != SCORE_PRODUCT:
                    if not len(known_MD):
                        found[i, j] = torch.nan
                        continue
                    spread_QM = inner_products(query_QD, known_MD)
                    deviation_Q1 = spread_QM.std(dim=1, correction=0, keepdim=True).clamp(min=_MIN_DEVIATION)
                    z_QN = (z_QN - spread_QM.mean(dim=1, keepdim=True)) / deviation_Q1
                z_QN = -z_QN if weight < 0 else z_QN
                found[i, j] = z_QN.masked_fill(~(query_QD.any(dim=1)[:, None] & is_there_N), torch.nan)
        return found

    def combine(self, z_IJQN: Tensor) -> Tensor:
        """Return the scores (Q, N) of standardized similarities."""
        weights_IJ11 = self.pair_weights().to(z_IJQN)[..., None, None]
        weights_IJQN = weights_IJ11.expand_as(z_IJQN).masked_fill(z_IJQN.isnan(), 0.0)
        is_compared_QN = weights_IJQN.any(dim=0).any(dim=0)
        if self.kind == SCORE_PRODUCT:
            logs_IJQN = self.factors(z_IJQN).log()
            exponents_IJQN = weights_IJQN / _sum_of_pairs(weights_IJQN).clamp(min=1e-12)
            # a factor of 0 has a log of -inf, which a weight of 0 must not turn into nan
            logs_QN = _sum_of_pairs((logs_IJQN * exponents_IJQN).masked_fill(exponents_IJQN == 0, 0.0))
            return logs_QN.exp().masked_fill(~is_compared_QN, 0.0)
        lengths_QN = _sum_of_pairs(weights_IJQN.square()).sqrt().clamp(min=1e-12)
        scores_QN = _sum_of_pairs(z_IJQN.nan_to_num() * weights_IJQN) / lengths_QN
        return scores_QN.masked_fill(~is_compared_QN, _WORST_SUM)

    def factors(self, z_IJQN: Tensor) -> Tensor:
        """Return the factors of `score_product`, 0 or more."""
        return (z_IJQN + (self.floor or 0.0)).clamp(min=0.0)

    def pair_weights(self) -> Tensor:
        """Return the weight (I, J) of each pair, 0 or more."""
        return torch.tensor(self.query_weights).abs()[:, None] * torch.tensor(self.product_weights)

    def linear_query(self, query_QE: Tensor, reference: Sequence[Tensor]) -> Tensor:
        """Return queries (Q, J * D) whose inner products rank as the standardized sum, of products with all parts.

        The columns of a part that no reference product has are 0.
        """
        columns = []
        for j, known_MD in enumerate(reference):
            column_QD = torch.zeros(len(query_QE), known_MD.shape[1])
            for i, weight in enumerate(self.query_weights if len(known_MD) else ()):
                query_QD = self._query_part(query_QE, known_MD.shape[1], i, j)
                deviation_Q1 = (query_QD @ known_MD.T).std(dim=1, correction=0, keepdim=True).clamp(min=_MIN_DEVIATION)
                column_QD += weight * self.product_weights[j] * query_QD / deviation_Q1
            columns.append(column_QD)
        total_QE = torch.cat(columns, dim=1)
        return total_QE / total_QE.norm(dim=1, keepdim=True).clamp(min=1e-12)

    def _parts(self, gallery_NE: Tensor) -> tuple[Tensor, ...]:
        return gallery_NE.chunk(len(self.product_weights), dim=1)

    def reference_parts(self, reference_ME: Tensor) -> list[Tensor]:
        """Return the rows (m, D) that have it, by part of a product, of rows (M, J * D) of the catalog."""
        return [part_MD[part_MD.any(dim=1)] for part_MD in self._parts(reference_ME)]

    def _query_part(self, query_QE: Tensor, width: int, i: int, j: int) -> Tensor:
        blocks_QKD = query_QE.reshape(len(query_QE), len(self.query_weights), -1, width)[:, i]
        return blocks_QKD[:, j if blocks_QKD.shape[1] > 1 else 0]


def _sum_of_pairs(values_IJQN: Tensor) -> Tensor:
    """Return the sums (Q, N), pair after pair: the order in which `Tensor.sum` adds depends on the shape."""
    total_QN, *others = values_IJQN.flatten(0, 1)
    for values_QN in others:
        total_QN = total_QN + values_QN
    return total_QN


def combination_of(query: Fusion | None, gallery: Fusion | None) -> ScoreCombination | None:
    """Return how the scores of a query side and a gallery side are combined; None: by inner product.

    Raises:
        ValueError: the sides combine their scores in different ways.
    """
    sides = [side for side in (query, gallery) if side is not None and not side.needs_one_vector]
    if not sides:
        return None
    if len(sides) == 2 and len({(side.kind, side.options["floor"]) for side in sides}) > 1:
        kinds = " and ".join(f"model.fusions.{side.name}.kind={side.kind}" for side in sides)
        raise ValueError(f"{kinds}: two sides of one direction combine their scores alike, with one floor")
    weights = [
        tuple(side.weights.values()) if side in sides and side is not None else (1.0,) for side in (query, gallery)
    ]
    return ScoreCombination(sides[0].kind, weights[0], weights[1], sides[0].options["floor"])
