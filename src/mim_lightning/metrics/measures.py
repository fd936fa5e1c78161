"""Retrieval metrics of each query: hit@k, recall@k, MRR, mAP, nDCG@k and the categories of hits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mim_lightning.types import NO_KEY


@dataclass(frozen=True)
class Ranking:
    """The first K products of each answerable query in one direction, with its relevant products."""

    query_keys: Tensor  # (Q,)
    category_keys: Tensor  # (Q,) of the query, NO_KEY where unknown
    product_keys: Tensor  # (Q, K) best first
    scores: Tensor  # (Q, K)
    grades: Tensor  # (Q, K) int64 of each hit, 0 if it is not relevant
    relevant_grades: Tensor  # (Q, R) int64 of the query's distinct relevant products in the gallery, 0 beyond
    cluster_keys: Tensor  # (Q,) the relevant product of the smallest key
    hit_category_keys: Tensor  # (Q, C) of the first hits, at least as many as the largest cut-off or K; NO_KEY: unknown


def score_rankings(ranking: Ranking, cutoffs: Sequence[int] = (1, 5, 10)) -> dict[str, Tensor]:
    """Return the metrics of each query, (Q,) float64 by metric key; a report has their means.

    With g_i the grade of the hit at rank i = 1..K, rel_i = 1 where g_i > 0, and R relevant products in the gallery:

    - ``hit@k``: 1 if any rel_i with i <= k, else 0.
    - ``recall@k``: sum of rel_i over i <= k, divided by R (Manning et al. 2008, chapter 8).
    - ``mrr``: 1/i of the first relevant hit; 0 if its rank > K.
    - ``map``: sum over i of rel_i * (rel_1 + ... + rel_i) / i, divided by R; relevant products
      at ranks > K add 0 (average precision, Manning et al. 2008, chapter 8).
    - ``ndcg@k``: sum over i <= k of g_i / log2(i + 1), divided by the same sum with the relevant products on top,
      highest grade first (Jarvelin and Kekalainen 2002; gain = grade and this discount as in trec_eval's ndcg_cut).
    - ``wrong_category@k``: of the first k hits whose category is known, the fraction that is not relevant and has
      another category than the query; nan if the category of the query or of all hits is unknown.
    - ``same_category@k``: likewise the fraction of the query's own category (both our choice).
    """
    found_QK = (ranking.grades > 0).double()
    num_relevant_Q = (ranking.relevant_grades > 0).sum(dim=1).double()
    ranks_K = torch.arange(1, found_QK.shape[1] + 1, device=found_QK.device).double()
    num_found_QK = found_QK.cumsum(dim=1)
    last = {k: min(k, len(ranks_K)) - 1 for k in cutoffs}
    scores = {f"hit@{k}": (num_found_QK[:, last[k]] > 0).double() for k in cutoffs}
    scores |= {f"recall@{k}": num_found_QK[:, last[k]] / num_relevant_Q for k in cutoffs}
    precision_QK = num_found_QK.div_(ranks_K).mul_(found_QK)  # at relevant hits, 0 elsewhere
    scores["mrr"] = found_QK.div_(ranks_K).amax(dim=1)
    scores["map"] = precision_QK.sum(dim=1) / num_relevant_Q
    scores |= {f"ndcg@{k}": _ndcg(ranking.grades[:, :k], ranking.relevant_grades, k) for k in cutoffs}
    return scores | _category_fractions(ranking, cutoffs)


def first_ranks(ranking: Ranking) -> Tensor:
    """Return the rank (Q,) int64 of each query's first relevant product, 1 is the best; 0 if there is none."""
    is_relevant = ranking.grades > 0
    return (is_relevant.int().argmax(dim=1) + 1).where(is_relevant.any(dim=1), 0)


def _ndcg(grades_QK: Tensor, relevant_grades_QR: Tensor, cutoff: int) -> Tensor:
    best_first_QR = relevant_grades_QR.sort(dim=1, descending=True).values[:, :cutoff]
    return _discounted_gain(grades_QK) / _discounted_gain(best_first_QR)


def _discounted_gain(grades_QK: Tensor) -> Tensor:
    discounts_K = 1 / torch.arange(2, grades_QK.shape[1] + 2, device=grades_QK.device).double().log2()
    return (grades_QK * discounts_K).sum(dim=1)


def _category_fractions(ranking: Ranking, cutoffs: Sequence[int]) -> dict[str, Tensor]:
    first = slice(max(cutoffs))
    hit_categories_QC = ranking.hit_category_keys[:, first]
    own_Q1 = ranking.category_keys[:, None]
    is_known = (hit_categories_QC != NO_KEY) & (own_Q1 != NO_KEY)
    is_same = is_known & (hit_categories_QC == own_Q1)
    is_wrong = is_known & ~is_same & (ranking.grades[:, first] < 1)

    def fractions(name: str, is_such: Tensor) -> dict[str, Tensor]:  # 0 / 0, nothing known, is nan
        return {f"{name}@{k}": is_such[:, :k].sum(dim=1).double() / is_known[:, :k].sum(dim=1) for k in cutoffs}

    return fractions("wrong_category", is_wrong) | fractions("same_category", is_same)
