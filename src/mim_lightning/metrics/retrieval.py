"""Retrieval quality of one direction: hit, recall, MRR, mAP and nDCG over every query of a pass.

In: query and gallery vectors with their ids and the relevant products of each query. Out: a
`RetrievalReport`, or the same measures for each query (`rank_direction`, then `score_rankings`) for
intervals over queries. Called by `lit.callbacks.retrieval_eval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_lightning.metrics.ranking import rank_gallery
from mim_lightning.types import NO_KEY, Hits, RetrievalReport


@dataclass(frozen=True)
class Ranking:
    """The first K products of each answerable query in one direction, with what is known of the truth."""

    query_keys: Tensor  # (Q,)
    product_keys: Tensor  # (Q, K)
    scores: Tensor  # (Q, K)
    is_relevant: Tensor  # (Q, K) bool
    num_relevant: Tensor  # (Q,) distinct relevant products in the gallery, at least 1
    is_wrong_category: Tensor  # (Q,) float64: 1 or 0 for the first hit, nan where a category is unknown
    num_unanswerable: int
    num_products: int


def evaluate_direction(
    name: str,
    query_vectors_QD: Tensor,
    query_keys_Q: Tensor,
    relevant_keys_QR: Tensor,
    query_category_keys_Q: Tensor,
    gallery_vectors_ND: Tensor,
    gallery_product_keys_N: Tensor,
    gallery_category_keys_N: Tensor,
    cutoffs: Sequence[int] = (1, 5, 10),
    depth: int = 1000,
    num_hits: int = 10,
) -> RetrievalReport:
    """Rank the gallery for each query and average the measures of `score_rankings` in float64.

    Relevant products that are not in the gallery do not count, and a key named twice counts once. Queries
    without any relevant product in the gallery are left out of averages and hits, and counted.

    Args:
        name: of the direction, as in config; the report and errors carry it.
        query_vectors_QD: (Q, D) of queries that are present.
        query_keys_Q: (Q,) distinct.
        relevant_keys_QR: (Q, R) product keys, NO_KEY where a query has fewer.
        query_category_keys_Q: (Q,) NO_KEY where unknown.
        gallery_vectors_ND: (N, D) of gallery rows that are present; several may share a product.
        gallery_product_keys_N: (N,)
        gallery_category_keys_N: (N,) NO_KEY where unknown.
        cutoffs: the k of hit@k, recall@k and nDCG@k.
        depth: how many products of a query MRR and mAP look at.
        num_hits: how many products of a query the report's hits keep.

    Raises:
        ValueError: a direction without any answerable query, or with cutoffs or num_hits beyond depth.

    Source: our choice; formulas and sources of the measures are at `score_rankings`.
    """
    if not cutoffs or not all(1 <= size <= depth for size in (*cutoffs, num_hits)):
        raise ValueError(f"{name}: cutoffs {list(cutoffs)} and num_hits {num_hits} must be in 1..depth ({depth})")
    ranking = rank_direction(
        name,
        query_vectors_QD,
        query_keys_Q,
        relevant_keys_QR,
        query_category_keys_Q,
        gallery_vectors_ND,
        gallery_product_keys_N,
        gallery_category_keys_N,
        depth,
    )
    means = {key: float(scores.nanmean()) for key, scores in score_rankings(ranking, cutoffs).items()}
    return RetrievalReport(
        direction=name,
        values=means,
        num_queries=len(ranking.query_keys),
        num_unanswerable=ranking.num_unanswerable,
        num_products=ranking.num_products,
        hits=_first_hits(ranking, num_hits),
    )


def rank_direction(
    name: str,
    query_vectors_QD: Tensor,
    query_keys_Q: Tensor,
    relevant_keys_QR: Tensor,
    query_category_keys_Q: Tensor,
    gallery_vectors_ND: Tensor,
    gallery_product_keys_N: Tensor,
    gallery_category_keys_N: Tensor,
    depth: int = 1000,
) -> Ranking:
    """Rank the gallery for each answerable query; arguments and errors as in `evaluate_direction`."""
    relevant_QR = _relevant_in_gallery(relevant_keys_QR, gallery_product_keys_N)
    num_relevant_Q = (relevant_QR != NO_KEY).sum(dim=1)
    keep = num_relevant_Q > 0
    if not keep.any():
        raise ValueError(f"{name}: none of {len(keep)} queries has a relevant product in the gallery")
    products_QK, scores_QK = rank_gallery(query_vectors_QD[keep], gallery_vectors_ND, gallery_product_keys_N, depth)
    is_relevant = _is_among(products_QK, relevant_QR[keep])
    hit_categories_Q = _categories_of(products_QK[:, 0], gallery_product_keys_N, gallery_category_keys_N)
    return Ranking(
        query_keys=query_keys_Q[keep],
        product_keys=products_QK,
        scores=scores_QK,
        is_relevant=is_relevant,
        num_relevant=num_relevant_Q[keep],
        is_wrong_category=_is_wrong(query_category_keys_Q[keep], hit_categories_Q, is_relevant[:, 0]),
        num_unanswerable=int((~keep).sum()),
        num_products=len(gallery_product_keys_N.unique()),
    )


def score_rankings(ranking: Ranking, cutoffs: Sequence[int] = (1, 5, 10)) -> dict[str, Tensor]:
    """Return the measures of each query, (Q,) float64 by metric key; their mean is the report.

    With rel_i = 1 where the hit at rank i = 1..K is relevant, and R relevant products in the gallery:

    - ``hit@k``: 1 if any rel_i with i <= k, else 0.
    - ``recall@k``: sum of rel_i over i <= k, divided by R (Manning et al. 2008, chapter 8).
    - ``mrr``: 1/i of the first relevant hit; 0 if it lies beyond depth K.
    - ``map``: sum over i of rel_i * (rel_1 + ... + rel_i) / i, divided by R; relevant products beyond
      depth K add 0 (average precision, Manning et al. 2008, chapter 8).
    - ``ndcg@k``: sum over i <= k of rel_i / log2(i + 1), divided by the same sum with min(R, k) relevant
      hits at the top (Jarvelin and Kekalainen 2002, binary relevance).
    - ``wrong_category@1``: 1 if the first hit is not relevant and its category differs from the query's, nan
      where either is unknown; left out where no query has one (our choice).
    """
    found_QK = ranking.is_relevant.double()
    relevant_Q = ranking.num_relevant.double()
    ranks_K = torch.arange(1, found_QK.shape[1] + 1, device=found_QK.device).double()
    num_found_QK = found_QK.cumsum(dim=1)
    last = {k: min(k, len(ranks_K)) - 1 for k in cutoffs}
    scores = {f"hit@{k}": (num_found_QK[:, last[k]] > 0).double() for k in cutoffs}
    scores |= {f"recall@{k}": num_found_QK[:, last[k]] / relevant_Q for k in cutoffs}
    scores["mrr"] = (found_QK / ranks_K).amax(dim=1)
    scores["map"] = (found_QK * num_found_QK / ranks_K).sum(dim=1) / relevant_Q
    scores |= {f"ndcg@{k}": _ndcg(found_QK[:, :k], ranking.num_relevant, k) for k in cutoffs}
    if not ranking.is_wrong_category.isnan().all():
        scores["wrong_category@1"] = ranking.is_wrong_category
    return scores


def _ndcg(found_QK: Tensor, num_relevant_Q: Tensor, cutoff: int) -> Tensor:
    discounts = 1 / torch.arange(2, cutoff + 2, device=found_QK.device).double().log2()
    ideal_Q = discounts.cumsum(dim=0)[num_relevant_Q.clamp(max=cutoff) - 1]
    return (found_QK * discounts[: found_QK.shape[1]]).sum(dim=1) / ideal_Q


def _relevant_in_gallery(relevant_QR: Tensor, gallery_keys_N: Tensor) -> Tensor:
    """Return the keys sorted by row, with NO_KEY for repeats and for products that the gallery lacks."""
    relevant_QR = relevant_QR.sort(dim=1).values
    is_known = torch.isin(relevant_QR, gallery_keys_N)
    is_known[:, 1:] &= relevant_QR[:, 1:] != relevant_QR[:, :-1]
    return relevant_QR.where(is_known, NO_KEY).sort(dim=1).values


def _is_among(products_QK: Tensor, relevant_QR: Tensor) -> Tensor:
    # A search in each sorted row: comparing all with all would hold Q * K * R values.
    place_QK = torch.searchsorted(relevant_QR, products_QK).clamp_(max=relevant_QR.shape[1] - 1)
    return relevant_QR.gather(1, place_QK) == products_QK


def _categories_of(products_Q: Tensor, gallery_keys_N: Tensor, categories_N: Tensor) -> Tensor:
    """Return each product's category, known if any of its gallery rows knows it."""
    keys_P, idx_N = gallery_keys_N.unique(return_inverse=True)
    categories_P = torch.full_like(keys_P, NO_KEY).scatter_reduce_(0, idx_N, categories_N, "amax")
    return categories_P[torch.searchsorted(keys_P, products_Q.contiguous())]


def _is_wrong(query_category_Q: Tensor, hit_category_Q: Tensor, is_relevant_Q: Tensor) -> Tensor:
    is_known = (query_category_Q != NO_KEY) & (hit_category_Q != NO_KEY)
    is_wrong = (query_category_Q != hit_category_Q) & ~is_relevant_Q
    return is_wrong.double().where(is_known, torch.nan)


def _first_hits(ranking: Ranking, num_hits: int) -> Hits:
    def first(part_QK: Tensor, fill: float) -> Tensor:
        missing = max(0, num_hits - part_QK.shape[1])
        return F.pad(part_QK[:, :num_hits], (0, missing), value=fill).cpu()

    return Hits(
        query_keys=ranking.query_keys.cpu(),
        product_keys=first(ranking.product_keys, NO_KEY),
        scores=first(ranking.scores, -torch.inf),
        is_relevant=first(ranking.is_relevant, False),
    )
