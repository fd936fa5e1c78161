"""Evaluation of one direction: rank the gallery for each query, compute the metrics, and average them in a report.

With several processes each one ranks its own part of the gallery for all queries, and the rankings are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_lightning.metrics.collectives import (
    bounds,
    count_distinct,
    gather_shares,
    max_of_ranks,
    send_rows,
    share_of_rank,
    sum_of_ranks,
    world,
)
from mim_lightning.metrics.intervals import bootstrap_intervals
from mim_lightning.metrics.measures import Ranking, first_ranks, score_rankings
from mim_lightning.metrics.ranking import BlockScoreFunction, GalleryBlocks, even_chunks, merge_rankings
from mim_lightning.metrics.row_vectors import RowVectors, SharedVectors, check_finite_rows
from mim_lightning.metrics.task import (
    Catalog,
    Gallery,
    Queries,
    cluster_keys_of,
    grades_of_hits,
    select_answerable,
)
from mim_lightning.types import NO_KEY, Hits, RetrievalReport

Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # queries (Q, D), K -> product keys and scores (Q, K)
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
    score: BlockScoreFunction | None = None,
    search: Search | None = None,
) -> RetrievalReport:
    """Rank the gallery for each query and average the metrics of `score_rankings` in float64.

    Relevant products that are not in the gallery do not count, and a key that is given twice counts once, with its
    highest grade. Queries without a relevant product in the gallery are left out of all metrics, and counted; the
    others are in ascending order of their keys. A metric without a value for any query is left out. The cluster of a
    query, for bootstrap intervals, is its relevant product of the smallest key. Products that are left out for a query
    are not part of its gallery.

    With several processes all must call it. Each gives the same queries (their vectors as `SharedVectors`, or whole)
    and its own rows of the gallery, none that another gives, maybe none at all. Blocks of queries are exchanged, each
    process ranks its rows for them, and merges the rankings of all for its part of a block. All return the same report,
    that of one process with the whole gallery, see `rank_gallery`: equal scores are ordered by product key.

    Args:
        name: of the direction, as in config, for report and errors.
        queries: those that are present.
        gallery: the rows that are present.
        cutoffs: the k of all metrics with a cut-off.
        depth: rank up to which MRR, mAP and ranks are computed.
        num_hits: products of a query in the report's hits.
        num_resamples: of the bootstrap intervals; 0: no intervals.
        memory_bytes: bound on working memory of this process, in addition to vectors and report, and to half as much
            for gallery vectors that are computed when they are read; changes no result.
        score: scores some gallery rows for some queries by their vectors, instead of the inner product.
        search: finds products instead of comparing all, as an index of the gallery; of one process.

    Returns:
        The report, on the CPU.

    Raises:
        NothingToRankError: no query has a relevant product in the gallery.
        ValueError: cutoffs or num_hits beyond depth; vectors that are not finite.

    Source: our choice; formulas and sources of the metrics are at `score_rankings`.
    """
    if not cutoffs or not all(1 <= size <= depth for size in (*cutoffs, num_hits)):
        raise ValueError(f"{name}: cutoffs {list(cutoffs)} and num_hits {num_hits} must be in 1..depth ({depth})")
    task = _Task.of(name, queries, gallery, memory_bytes, score, search)
    size = max(1, memory_bytes // 2 // (_RANKED_BYTES * min(depth, task.num_products)))
    chunks = even_chunks(len(task.answerable), size)
    scored = [
        _score_rows(_rank(task, task.answerable.take(chunk), depth, max(cutoffs)), cutoffs, num_hits)
        for chunk in chunks
    ]
    rows = {part: torch.cat([s.pop(part) for s in scored]) for part in [*scored[0]]}
    rows = gather_shares(rows, [chunk.stop - chunk.start for chunk in chunks])
    return _report(name, task.answerable, rows, len(queries), task.num_products, num_resamples)


def rank_direction(
    name: str, queries: Queries, gallery: Gallery, depth: int = 1000, memory_bytes: int = 2**29
) -> Ranking:
    """Rank the gallery for each answerable query as `evaluate_direction` does; of several processes, for its share."""
    task = _Task.of(name, queries, gallery, memory_bytes)
    return _rank(task, task.answerable, depth, depth)


def rank_blocks(
    name: str,
    queries: Queries,
    gallery: Gallery,
    depth: int,
    memory_bytes: int = 2**29,
    score: BlockScoreFunction | None = None,
) -> Iterator[tuple[int, Ranking]]:
    """Rank the gallery for the answerable queries, block by block.

    Yields:
        The queries of a block, and their ranking; of several processes, of this one's share of them, see
        `share_of_rank`.
    """
    task = _Task.of(name, queries, gallery, memory_bytes, score)
    size = max(1, memory_bytes // 2 // (_RANKED_BYTES * min(depth, task.num_products)))
    for chunk in even_chunks(len(task.answerable), size):
        yield chunk.stop - chunk.start, _rank(task, task.answerable.take(chunk), depth, 1)


@dataclass(frozen=True)
class _Task:
    """What is ranked in a direction: the answerable queries of all processes, and the gallery rows of this one."""

    answerable: Queries
    blocks: GalleryBlocks
    catalog: Catalog
    num_products: int  # of all processes
    memory_bytes: int
    score: BlockScoreFunction | None
    search: Search | None = None

    @classmethod
    def of(
        cls,
        name: str,
        queries: Queries,
        gallery: Gallery,
        memory_bytes: int,
        score: BlockScoreFunction | None = None,
        search: Search | None = None,
    ) -> _Task:
        catalog = Catalog.of(gallery)
        answerable = select_answerable(queries, catalog)
        if not len(answerable):
            raise NothingToRankError(f"{name}: none of {len(queries)} queries has a relevant product in the gallery")
        query_vectors = answerable.vectors
        if isinstance(query_vectors, SharedVectors):
            check_finite_rows("query", query_vectors.of_this_rank(), is_shared=True)
        else:
            rows = RowVectors.of(query_vectors) if isinstance(query_vectors, Tensor) else query_vectors
            check_finite_rows("query", rows, is_shared=False)
        offered = RowVectors.of(gallery.vectors) if isinstance(gallery.vectors, Tensor) else gallery.vectors
        # checked before anything is ranked: a process that raised alone would leave the others waiting
        check_finite_rows("gallery", offered, is_shared=True)
        num_products, (num_rows,) = count_distinct(catalog.product_keys), sum_of_ranks(len(offered))
        blocks = GalleryBlocks(offered, gallery.product_keys, num_rows == num_products, memory_bytes // 2)
        return cls(answerable, blocks, catalog, num_products, memory_bytes, score, search)


def _rank(task: _Task, block: Queries, depth: int, num_categories: int) -> Ranking:
    """Return the ranking of this process's share of a block of queries, see `share_of_rank`."""
    num_kept = min(depth, task.num_products)
    query_QD = block.vectors if isinstance(block.vectors, Tensor) else block.vectors.read()
    left_out = None if block.left_out_keys is None else block.left_out_keys.to(query_QD.device)
    if task.search is not None:
        ranked = _search(task.search, query_QD, num_kept, left_out)
    else:
        ranked = task.blocks.rank(query_QD, num_kept, task.memory_bytes // 2, left_out, task.score)
    if world()[1] > 1:
        ranked = _merge_ranks(*ranked, num_kept, task.blocks.has_one_row_each)
    products_QK, scores_QK = (part.to(block.keys.device) for part in ranked)
    mine = block.take(share_of_rank(len(block)))
    assert mine.grades is not None
    return Ranking(
        query_keys=mine.keys,
        category_keys=mine.category_keys,
        product_keys=products_QK,
        scores=scores_QK,
        grades=grades_of_hits(products_QK, mine.relevant_keys, mine.grades),
        relevant_grades=mine.grades,
        cluster_keys=cluster_keys_of(mine),
        hit_category_keys=_categories_of(products_QK[:, :num_categories], task.catalog, len(block)),
    )


def _search(search: Search, query_QD: Tensor, num_kept: int, left_out_QL: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the first products that a search finds, and their scores, without those that are left out."""
    if left_out_QL is None:
        return search(query_QD, num_kept)
    products_QF, scores_QF = search(query_QD, num_kept + left_out_QL.shape[1])
    is_out_QF = (products_QF[:, :, None] == left_out_QL[:, None]).any(dim=2)
    order_QK = is_out_QF.int().argsort(dim=1, stable=True)[:, :num_kept]
    return products_QF.gather(1, order_QK), scores_QF.gather(1, order_QK)


def _merge_ranks(
    products_QK: Tensor, scores_QK: Tensor, num_kept: int, has_one_row_each: bool
) -> tuple[Tensor, Tensor]:
    """Return the first products and scores of this process's share of the queries, of the rankings of all."""
    sizes = [stop - start for start, stop in bounds(len(products_QK))]

    def exchange(part_QK: Tensor, fill: float) -> Tensor:
        padded = F.pad(part_QK, (0, num_kept - part_QK.shape[1]), value=fill)
        received = send_rows(padded, sizes)[0].view(len(sizes), sizes[world()[0]], num_kept)  # by rank
        return received.transpose(0, 1).flatten(1)

    return merge_rankings(exchange(products_QK, NO_KEY), exchange(scores_QK, -torch.inf), num_kept, has_one_row_each)


def _categories_of(products_QC: Tensor, catalog: Catalog, num_queries: int) -> Tensor:
    """Return the category of each hit of this process's share, as any process knows it."""
    if world()[1] == 1:
        return catalog.categories_of(products_QC)
    products = gather_shares({"keys": products_QC}, [num_queries])["keys"]
    return max_of_ranks(catalog.categories_of(products))[share_of_rank(num_queries)]


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
