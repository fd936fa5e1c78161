"""Searches of queries whose answers are known: which scores right and wrong products get."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mim_lightning.fields import QUERY_IMAGE, QUERY_TEXT
from mim_lightning.inference.image_inputs import ImageInputError
from mim_lightning.search.index.interface import ProductIndex
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import Searcher
from mim_lightning.types import Sample


@dataclass(frozen=True)
class JudgedSearches:
    """Searches of Q queries of one kind, K hits each.

    Attributes:
        scores: (Q, K) best first, -inf where there is none.
        is_right: (Q, K) whether the hit answers the query.
        best_wrong: (Q,) highest score of a product that does not answer the query: that of its first hit if no product
            that does were in the index.
        is_answerable: (Q,) whether the index has a product that answers the query.
        groups: (Q,) a number for the first of the products that answer it.
    """

    scores: np.ndarray
    is_right: np.ndarray
    best_wrong: np.ndarray
    is_answerable: np.ndarray
    groups: np.ndarray


def judge_searches(
    searcher: Searcher,
    samples: Iterable[Sample],
    kind: str,
    num_hits: int,
    advance: Callable[[], None] = lambda: None,
) -> JudgedSearches:
    """Search for samples of queries; those that lack a part of the kind, or have a damaged image, are left out.

    Args:
        kind: "image": by the image alone, answered by the products that it shows; "text": by the words alone;
            "composed": by both, answered by the products that the words ask for.
        advance: is called after every sample.
    """
    rows: list[tuple[np.ndarray, np.ndarray, float, bool, int]] = []
    group_of: dict[str, int] = {}
    for sample in samples:
        query, right = query_of(sample, kind), answers_of(sample, kind)
        if query is not None and right:
            try:
                hits = searcher.search(SearchQuery(**query, num_hits=num_hits + len(right))).hits
            except ImageInputError:
                advance()
                continue
            scores_K, is_right_K = np.full(num_hits, -np.inf), np.zeros(num_hits, dtype=bool)
            for place, hit in enumerate(hits[:num_hits]):
                scores_K[place], is_right_K[place] = hit.score, hit.product_id in right
            wrong = [hit.score for hit in hits if hit.product_id not in right]
            found = any(hit.product_id in right for hit in hits) or any(_has(searcher.index, one) for one in right)
            group = group_of.setdefault(min(right), len(group_of))
            rows.append((scores_K, is_right_K, wrong[0] if wrong else -np.inf, found, group))
        advance()
    if not rows:
        empty = np.zeros((0, num_hits))
        return JudgedSearches(empty, empty.astype(bool), np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0, dtype=int))
    return JudgedSearches(*(np.array(column) for column in zip(*rows, strict=True)))


def query_of(sample: Sample, kind: str) -> dict[str, Any] | None:
    image, text = sample.inputs.get(QUERY_IMAGE), sample.inputs.get(QUERY_TEXT)
    parts: dict[str, Any] = {}
    if kind != "text":
        parts["images"] = (image,)
    if kind != "image":
        parts["text"] = text
    return parts if (kind == "text" or image is not None) and (kind == "image" or text) else None


def answers_of(sample: Sample, kind: str) -> set[str]:
    return set((sample.reference_ids if kind == "image" else ()) or sample.target_ids)


def _has(index: ProductIndex, product_id: str) -> bool:
    try:
        index.products([product_id])
    except ValueError:
        return False
    return True
