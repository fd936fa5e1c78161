"""Evaluation of one direction: rank the gallery for each query, compute the metrics, and average them in a report.

With several processes each one ranks a part of the queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_lightning.metrics.collector import gather_shares, share_of_rank
from mim_lightning.metrics.intervals import bootstrap_intervals
from mim_lightning.metrics.measures import Ranking, first_ranks, score_rankings
from mim_lightning.metrics.ranking import ScoreFunction, check_finite, even_chunks, rank_gallery
from mim_lightning.metrics.task import (
    Catalog,
    Gallery,
    Queries,
    cluster_keys_of,
    grades_of_hits,
    select_answerable,
)
from mim_lightning.types import NO_KEY, Hits, RetrievalReport

_RANKED_BYTES = 64  # a ranked product: key, score, grade, and intermediate values of the metrics


class NothingToRankError(ValueError):
    """A direction counts no query of a set."""


def evaluate_direction(
    name: str,
    queries: Queries,
    gallery: Gallery,
    cutoffs: Sequence[int] = (1, 5, 10),
    depth: int = 1000,
    num_hits: int = 10,
    num_resamples: int = 0,
    memory_bytes: int = 2**29,
    score: ScoreFunction | None = None,
) -> RetrievalReport:
    """Rank the gallery for each query and average the metrics of `score_rankings` in float64.

    Relevant products that are not in the gallery do not count, and a key that is given twice counts once, with its
    highest grade. Queries without a relevant product in the gallery are left out of all metrics, and counted; the
    others are in ascending order of their keys. A metric without a value for any query is left out. The cluster of a
    query, for bootstrap intervals, is its relevant product of the smallest key. Products that are left out for a query
    are not part of its gallery.

    With several processes all must call it with the same queries and gallery; each ranks a part of the queries, and
    all return the same report.

    Args:
        name: of the direction, as in config, for report and errors.
        queries: those that are present.
        gallery: the rows that are present.
        cutoffs: the k of all metrics with a cut-off.
        depth: rank up to which MRR, mAP and ranks are computed.
        num_hits: products of a query in the report's hits.
        num_resamples: of the bootstrap intervals; 0: no intervals.
        memory_bytes: bound on working memory of this process, in addition to vectors and report; changes no result.
        score: scores all gallery rows for some queries, instead of the inner product.

    Returns:
        The report, on the CPU.

    Raises:
        NothingToRankError: no query has a relevant product in the gallery.
        ValueError: cutoffs or num_hits beyond depth; vectors that are not finite.

    Source: our choice; formulas and sources of the metrics are at `score_rankings`.
    """
    if not cutoffs or not all(1 <= size <= depth for size in (*cutoffs, num_hits)):
        raise ValueError(f"{name}: cutoffs {list(cutoffs)} and num_hits {num_hits} must be in 1..depth ({depth})")
    catalog = Catalog.of(gallery)
    answerable = _answerable(name, queries, catalog)
    mine = answerable.take(share_of_rank(len(answerable)))
    size = max(1, memory_bytes // 2 // (_RANKED_BYTES * min(depth, len(catalog))))
    scored = []
    for chunk in even_chunks(len(mine), size):
        ranking = _rank(mine.take(chunk), gallery, catalog, depth, memory_bytes // 2, score)
        scored.append(_score_rows(ranking, cutoffs, num_hits))
    rows = gather_shares({part: torch.cat([s[part] for s in scored]) for part in scored[0]}, len(answerable))
    return _report(name, answerable, rows, len(queries), len(catalog), num_resamples)


def rank_direction(
    name: str, queries: Queries, gallery: Gallery, depth: int = 1000, memory_bytes: int = 2**29
) -> Ranking:
    """Rank the gallery for each answerable query as `evaluate_direction` does, all in this process."""
    catalog = Catalog.of(gallery)
    return _rank(_answerable(name, queries, catalog), gallery, catalog, depth, memory_bytes)


def _answerable(name: str, queries: Queries, catalog: Catalog) -> Queries:
    answerable = select_answerable(queries, catalog)
    if not len(answerable):
        raise NothingToRankError(f"{name}: none of {len(queries)} queries has a relevant product in the gallery")
    # checked on all ranks before they divide the queries: one that raised alone would leave the others waiting
    check_finite("query", answerable.vectors)
    return answerable


def _rank(
    answerable: Queries,
    gallery: Gallery,
    catalog: Catalog,
    depth: int,
    memory_bytes: int,
    score: ScoreFunction | None = None,
) -> Ranking:
    products_QK, scores_QK = rank_gallery(
        answerable.vectors,
        gallery.vectors,
        gallery.product_keys,
        depth,
        memory_bytes,
        answerable.left_out_keys,
        score,
    )
    assert answerable.grades is not None
    return Ranking(
        query_keys=answerable.keys,
        category_keys=answerable.category_keys,
        product_keys=products_QK,
        scores=scores_QK,
        grades=grades_of_hits(products_QK, answerable.relevant_keys, answerable.grades),
        relevant_grades=answerable.grades,
        cluster_keys=cluster_keys_of(answerable),
        catalog=catalog,
    )


def _score_rows(ranking: Ranking, cutoffs: Sequence[int], num_hits: int) -> dict[str, Tensor]:
    """Return what a report keeps of each query: its first hits, its rank and its metrics."""

    def first(part_QK: Tensor, fill: float) -> Tensor:
        missing = max(0, num_hits - part_QK.shape[1])
        return F.pad(part_QK[:, :num_hits], (0, missing), value=fill).cpu()

    return {
        "hit_keys": first(ranking.product_keys, NO_KEY),
        "hit_scores": first(ranking.scores, -torch.inf),
        "hit_is_relevant": first(ranking.grades > 0, False),
        "ranks": first_ranks(ranking).cpu(),
        **{name: part.cpu() for name, part in score_rankings(ranking, cutoffs).items()},
    }


def _report(
    name: str, answerable: Queries, rows: dict[str, Tensor], num_queries: int, num_products: int, num_resamples: int
) -> RetrievalReport:
    query_keys, cluster_keys = answerable.keys.cpu(), cluster_keys_of(answerable).cpu()
    hits = Hits(query_keys, rows.pop("hit_keys"), rows.pop("hit_scores"), rows.pop("hit_is_relevant"))
    ranks = rows.pop("ranks")
    scores = {measure: part for measure, part in rows.items() if not part.isnan().all()}
    intervals = {}
    if num_resamples:
        arrays = {measure: part.numpy() for measure, part in scores.items()}
        intervals = bootstrap_intervals(arrays, cluster_keys.numpy(), num_resamples)
    return RetrievalReport(
        direction=name,
        values={measure: float(part.nanmean()) for measure, part in scores.items()},
        intervals=intervals,
        num_queries=len(answerable),
        num_unanswerable=num_queries - len(answerable),
        num_products=num_products,
        hits=hits,
        scores=scores,
        ranks=ranks,
        cluster_keys=cluster_keys,
    )
