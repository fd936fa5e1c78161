"""Exact top-k by inner product: the products of a gallery that rank first for each query, one hit a product.

Matrix products fetch the first rows; queries with ties beyond the fetched rows are ranked in full. Results are product
keys, never row positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from mim_lightning.metrics.collectives import any_of_ranks
from mim_lightning.metrics.row_vectors import RowVectors, count_not_finite
from mim_lightning.precision import TILE_QUERIES, TILE_ROWS, inner_products, plain_float32
from mim_lightning.types import NO_KEY

_SPARE_PRODUCTS = 200  # for so many products all images are fetched at once
_FETCH_BYTES = 80  # a fetched row: position, product and score, and their copies while sorting
_SCORE_BYTES = 8  # a score while the first rows are fetched on a CPU, and its copy while sorting
_SCORED_BYTES = 120  # a gallery row when scores are a function: similarities by pair of parts, and their combination
_FULL_BYTES = 24  # a gallery row when ranked in full: score, best of its product, masks and their running count


ScoreFunction = Callable[[Tensor], Tensor]  # queries (Q, E) -> scores (Q, N) of the gallery rows
BlockScoreFunction = Callable[..., Tensor]  # queries (Q, E), gallery_NE=rows (N, E) -> scores (Q, N)


@dataclass(frozen=True)
class _Gallery:
    vectors: Tensor  # (N, D) as given: a sorted copy would double the memory
    product_idx: Tensor  # (N,) position in product_keys, so that a lower one means a lower key
    product_keys: Tensor  # (P,) distinct, ascending


class GalleryBlocks:
    """The gallery rows of this process, ranked block by block: vectors that are computed or converted exist for one.

    Args:
        vectors: (N, D) finite; without absent rows.
        product_keys: (N,) int64; rows of one product share a key.
        has_one_row_each: whether no product has two rows, here or in another process.
        block_bytes: of the vectors of a block, where reading them needs memory.
    """

    def __init__(self, vectors: RowVectors, product_keys: Tensor, has_one_row_each: bool, block_bytes: int) -> None:
        if any_of_ranks((product_keys == NO_KEY).any()):  # all raise, or the others would wait
            raise ValueError("a gallery row has no product key")
        self.vectors, self.has_one_row_each = vectors, has_one_row_each
        blocks = vectors.blocks(block_bytes) or [slice(0, 0)]
        # of each block: its distinct products, ascending, and the position among them of each row
        self._blocks = [(block, *product_keys[block].unique(return_inverse=True)) for block in blocks]

    def rank(
        self,
        query_QD: Tensor,
        depth: int,
        memory_bytes: int,
        left_out_keys_QR: Tensor | None = None,
        score: BlockScoreFunction | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return product keys and scores (Q, K) of the first `depth` products, as `rank_gallery`; fewer if there are.

        Args:
            score: scores the rows of a block by their vectors, instead of the inner product.
        """
        best: tuple[Tensor, Tensor] | None = None
        for block, keys_P, idx_N in self._blocks:
            if block.stop == block.start:
                empty_Q0 = query_QD.new_empty(len(query_QD), 0)
                return empty_Q0.long(), empty_Q0
            gallery = _Gallery(self.vectors.read(block), idx_N.to(query_QD.device), keys_P.to(query_QD.device))
            score_block = None if score is None else partial(score, gallery_NE=gallery.vectors)
            found = _rank(query_QD, gallery, depth, memory_bytes, left_out_keys_QR, score_block)
            del gallery, score_block  # before the next block is read
            if best is not None:
                products_QM, scores_QM = (torch.cat(pair, dim=1) for pair in zip(best, found, strict=True))
                found = merge_rankings(products_QM, scores_QM, depth, self.has_one_row_each)
            best = found
        assert best is not None
        return best


def merge_rankings(
    products_QM: Tensor, scores_QM: Tensor, depth: int, has_one_row_each: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the first `depth` products and scores of the rankings of parts of a gallery, side by side.

    Each product once, with its best score, in the order of `rank_gallery`.

    Args:
        products_QM: (Q, M) keys, NO_KEY with a score of -inf where a part has no further product.
        scores_QM: (Q, M).
        depth: number of products of a query; fewer if M is smaller.
        has_one_row_each: whether no product is in two parts.
    """
    scores_QM, by_score = scores_QM.sort(dim=1, descending=True, stable=True)
    products_QM = products_QM.gather(1, by_score)
    if has_one_row_each:
        products_QK, scores_QK = products_QM[:, :depth].clone(), scores_QM[:, :depth].clone()
        # with the one after the last: a tie there decides which of both is a hit
        tied = (scores_QM[:, 1 : depth + 1] == scores_QM[:, :depth][:, : scores_QM.shape[1] - 1]).any(dim=1)
        if tied.any():
            products_QK[tied], scores_QK[tied] = _merge_ties(products_QM[tied], scores_QM[tied], depth)
        return products_QK, scores_QK
    return _merge_ties(products_QM, scores_QM, depth)


def _merge_ties(products_QM: Tensor, scores_QM: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    products_QM, by_product = products_QM.sort(dim=1, stable=True)  # stable: a product's best score stays first
    scores_QM = scores_QM.gather(1, by_product)
    is_repeat = products_QM[:, 1:] == products_QM[:, :-1]
    products_QM[:, 1:].masked_fill_(is_repeat, NO_KEY)
    scores_QM[:, 1:].masked_fill_(is_repeat, -torch.inf)
    scores_QM, by_score = scores_QM.sort(dim=1, descending=True, stable=True)
    return products_QM.gather(1, by_score[:, :depth]), scores_QM[:, :depth].contiguous()


def rank_gallery(
    query_vectors_QD: Tensor,
    gallery_vectors_ND: Tensor,
    gallery_product_keys_N: Tensor,
    depth: int,
    memory_bytes: int = 2**29,
    left_out_keys_QR: Tensor | None = None,
    score: ScoreFunction | None = None,
) -> tuple[Tensor, Tensor]:
    """Rank the products of a gallery for each query by inner product, exactly.

    A product with several gallery rows (images) is one hit, with its best score. Equal scores are ordered by
    ascending product key, also at the cut-off: keys are digests, so this order does not depend on the order of rows or
    on relevance, and a model that embeds everything alike scores chance. Scores are float32 under any autocast or
    matmul precision. "Equal" means equal as computed. On a CPU an inner product depends on its two vectors alone, so
    results are those of any order of rows, parts of the gallery, memory, threads and processes, to the last bit. On a
    GPU, and with a function that does not keep to this, scores that differ only by rounding may change places.

    Args:
        query_vectors_QD: (Q, D) finite; without absent queries.
        gallery_vectors_ND: (N, D) finite; without absent rows.
        gallery_product_keys_N: (N,) int64; rows of one product share a key.
        depth: number of products of a query.
        memory_bytes: bound on working memory, in addition to vectors, result and a few integers a gallery row; decides
            how many queries are ranked at once, at least one. Vectors that are not contiguous float32 are copied.
        left_out_keys_QR: (Q, R) products that are not in the gallery of this query, NO_KEY where there are fewer.
        score: scores all gallery rows, instead of the inner product; the vectors may then differ in width.

    Returns:
        Product keys (Q, K) and scores (Q, K) float32, best first; K is `depth` or the number of products. Where a
        query's own gallery is shorter, it ends with NO_KEY and -inf.

    Raises:
        ValueError: no gallery, shapes that do not fit, depth below 1, a gallery row without a product key, values that
            are not finite.

    Source: our choice.
    """
    width = gallery_vectors_ND.shape[1:] if score is None else query_vectors_QD.shape[1:]
    _check(query_vectors_QD, gallery_vectors_ND, gallery_product_keys_N, depth, width)
    keys_P, idx_N = gallery_product_keys_N.unique(return_inverse=True)
    gallery = _Gallery(gallery_vectors_ND.detach().float().contiguous(), idx_N, keys_P)
    return _rank(query_vectors_QD, gallery, depth, memory_bytes, left_out_keys_QR, score)


def _rank(
    query_vectors_QD: Tensor,
    gallery: _Gallery,
    depth: int,
    memory_bytes: int,
    left_out_keys_QR: Tensor | None,
    score: ScoreFunction | None,
) -> tuple[Tensor, Tensor]:
    keys_P = gallery.product_keys
    num_left_out = 0 if left_out_keys_QR is None else left_out_keys_QR.shape[1]
    keep = min(depth + num_left_out, len(keys_P))  # at least `depth` remain, whichever are left out
    per_query = _FETCH_BYTES * _num_fetched(gallery, keep)
    if score is not None:
        per_query = (_FETCH_BYTES * keep) + (_FULL_BYTES + _SCORED_BYTES) * len(gallery.vectors)
    elif query_vectors_QD.is_cpu:
        per_query *= 2  # as much for scores of which the first are taken, see `fetch_rows`
    else:  # one matrix product stores all scores of a query
        per_query += _FULL_BYTES * len(gallery.vectors)
    products_QK = keys_P.new_empty(len(query_vectors_QD), keep)
    scores_QK = gallery.vectors.new_empty(len(query_vectors_QD), keep)
    for chunk in even_chunks(len(query_vectors_QD), max(1, memory_bytes // per_query)):
        query_QD = query_vectors_QD[chunk].detach().float()
        if score is not None:
            with plain_float32(query_QD.device.type):
                scores_QN = score(query_QD)
            product_idx_QK, scores_QK[chunk] = _rank_scores(scores_QN, gallery, keep)
        else:
            product_idx_QK, scores_QK[chunk] = _rank_chunk(query_QD, gallery, keep, memory_bytes)
        products_QK[chunk] = keys_P[product_idx_QK]
    if left_out_keys_QR is not None and num_left_out:
        return _without(products_QK, scores_QK, left_out_keys_QR, min(depth, len(keys_P)))
    return products_QK, scores_QK


def _without(products_QK: Tensor, scores_QK: Tensor, left_out_QR: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return the first `depth` products and scores of each query that are not left out, in the same order."""
    is_out_QK = torch.zeros_like(products_QK, dtype=torch.bool)
    for left_out_Q in left_out_QR.unbind(dim=1):
        is_out_QK |= products_QK == left_out_Q[:, None]
    products_QK, scores_QK = products_QK.masked_fill(is_out_QK, NO_KEY), scores_QK.masked_fill(is_out_QK, -torch.inf)
    first_QK = is_out_QK.byte().argsort(dim=1, stable=True)[:, :depth]
    return products_QK.gather(1, first_QK), scores_QK.gather(1, first_QK)


def _check(query_QD: Tensor, gallery_ND: Tensor, product_keys_N: Tensor, depth: int, width: torch.Size) -> None:
    if depth < 1 or len(gallery_ND) == 0:
        raise ValueError(f"ranking needs a depth (is {depth}) and a gallery (has {len(gallery_ND)} rows)")
    if query_QD.shape[1:] != width or len(product_keys_N) != len(gallery_ND):
        shapes = [tuple(part.shape) for part in (query_QD, gallery_ND, product_keys_N)]
        raise ValueError(f"shapes of query, gallery and product keys do not fit: {shapes}")
    if (product_keys_N == NO_KEY).any():
        raise ValueError("a gallery row has no product key")
    check_finite("query", query_QD)
    check_finite("gallery", gallery_ND)


def check_finite(what: str, vectors: Tensor) -> None:
    """Raise ValueError if a row of the `what` vectors (N, D) has a value that is not finite."""
    num_bad = count_not_finite(vectors)
    if num_bad:
        raise ValueError(f"{num_bad} of {len(vectors)} {what} vectors are not finite")


def even_chunks(num_rows: int, largest: int) -> list[slice]:
    """Return slices that cover the rows, of sizes that differ by at most one; of no rows one empty slice.

    A matrix product is slow on few queries, so a small remainder would be expensive.
    """
    num_chunks = max(1, -(-num_rows // largest))
    ends = [num_rows * chunk // num_chunks for chunk in range(num_chunks + 1)]
    return [slice(*pair) for pair in pairwise(ends)]


def _num_fetched(gallery: _Gallery, keep: int) -> int:
    """Return how many rows usually have `keep` products, plus one row that shows where they end."""
    num_rows, num_products = len(gallery.vectors), len(gallery.product_keys)
    if num_rows == num_products:
        return min(num_rows, keep + 1)
    # Fetching far more than `keep` costs more than ranking in full the queries that need it.
    return min(num_rows, keep + 1 + min(keep, _SPARE_PRODUCTS) * num_rows // num_products)


def _rank_chunk(query_QD: Tensor, gallery: _Gallery, keep: int, memory_bytes: int) -> tuple[Tensor, Tensor]:
    num_fetched = _num_fetched(gallery, keep)
    scores_QF, rows_QF = fetch_rows(query_QD, gallery.vectors, num_fetched, memory_bytes // 2)
    products_QF = gallery.product_idx[rows_QF]
    if len(gallery.vectors) == len(gallery.product_keys):
        products_QK, scores_QK = _order_ties(scores_QF, products_QF, keep)
    else:
        products_QK, scores_QK = _one_hit_a_product(scores_QF, products_QF, keep)
    if num_fetched < len(gallery.vectors):
        # Rows beyond the fetched ones may equal the last fetched score: only hits above it are certain.
        unsure = (scores_QK[:, -1] <= scores_QF[:, -1]).nonzero().flatten()
        per_query = _FULL_BYTES * len(gallery.vectors) + _FETCH_BYTES * keep
        for part in unsure.split(max(1, memory_bytes // per_query)):
            products_QK[part], scores_QK[part] = _rank_in_full(query_QD[part], gallery, keep)
    return products_QK, scores_QK


def _order_ties(scores_QF: Tensor, products_QF: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return products and scores (Q, K) of a gallery of one row a product: only queries with ties are sorted again."""
    products_QK, scores_QK = products_QF[:, :keep].clone(), scores_QF[:, :keep].clone()
    tied = (scores_QK[:, 1:] == scores_QK[:, :-1]).any(dim=1).nonzero().flatten()
    if len(tied):
        products_QK[tied], scores_QK[tied] = _one_hit_a_product(scores_QF[tied], products_QF[tied], keep)
    return products_QK, scores_QK


def _one_hit_a_product(scores_QF: Tensor, products_QF: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return products and scores (Q, K): the best row of each, ties ascending by product."""
    products_QF, by_product = products_QF.sort(dim=1, stable=True)  # stable: rows of a product stay best first
    scores_QF = scores_QF.gather(1, by_product)
    is_repeat = products_QF[:, 1:] == products_QF[:, :-1]
    scores_QF[:, 1:].masked_fill_(is_repeat, -torch.inf)
    scores_QF, by_score = scores_QF.sort(dim=1, descending=True, stable=True)
    return products_QF.gather(1, by_score[:, :keep]), scores_QF[:, :keep].contiguous()


def _rank_in_full(query_QD: Tensor, gallery: _Gallery, keep: int) -> tuple[Tensor, Tensor]:
    """Return products and scores (Q, K) from the scores of the whole gallery, ties included."""
    with plain_float32(query_QD.device.type):
        scores_QN = inner_products(query_QD, gallery.vectors)
    return _rank_scores(scores_QN, gallery, keep)


def _rank_scores(scores_QN: Tensor, gallery: _Gallery, keep: int) -> tuple[Tensor, Tensor]:
    scores_QP = _best_of_each_product(scores_QN, gallery)
    last_Q1 = scores_QP.topk(keep, dim=1).values[:, -1:]
    is_above = scores_QP > last_Q1
    is_tied = scores_QP == last_Q1
    room_Q1 = keep - is_above.sum(dim=1, keepdim=True)
    is_hit = is_above | (is_tied & (is_tied.cumsum(dim=1, dtype=torch.int32) <= room_Q1))
    products_QK = is_hit.nonzero()[:, 1].view(-1, keep)
    scores_QK, order_QK = scores_QP.gather(1, products_QK).sort(dim=1, descending=True, stable=True)
    return products_QK.gather(1, order_QK), scores_QK


def _best_of_each_product(scores_QN: Tensor, gallery: _Gallery) -> Tensor:
    scores_QP = scores_QN.new_full((len(scores_QN), len(gallery.product_keys)), -torch.inf)
    return scores_QP.scatter_reduce_(1, gallery.product_idx.expand_as(scores_QN), scores_QN, "amax")


def fetch_rows(query_QD: Tensor, gallery_ND: Tensor, num_rows: int, memory_bytes: int) -> tuple[Tensor, Tensor]:
    """Return scores and positions (Q, F) of the rows with the highest inner products, best first, ties in any order.

    Args:
        memory_bytes: for scores on a CPU; at least those of one matrix product are stored.
    """
    with plain_float32(query_QD.device.type):
        if not query_QD.is_cpu:
            scores_QF, rows_QF = inner_products(query_QD, gallery_ND).topk(num_rows, dim=1)
            return scores_QF, rows_QF
        # of many gallery rows a part at a time, rather than of fewer queries than a product has
        num_scores = memory_bytes // _SCORE_BYTES
        block_rows = min(max(1, num_scores // TILE_QUERIES // TILE_ROWS), -(-len(gallery_ND) // TILE_ROWS)) * TILE_ROWS
        num_queries = max(1, num_scores // block_rows // TILE_QUERIES) * TILE_QUERIES
        found = [_fetch_by_block(part_QD, gallery_ND, num_rows, block_rows) for part_QD in query_QD.split(num_queries)]
    scores_QF, rows_QF = (torch.cat(parts) for parts in zip(*found, strict=True))
    return scores_QF, rows_QF


def _fetch_by_block(query_QD: Tensor, gallery_ND: Tensor, num_rows: int, block_rows: int) -> tuple[Tensor, Tensor]:
    scores_QF, rows_QF = query_QD.new_empty(len(query_QD), 0), torch.empty(len(query_QD), 0, dtype=torch.long)
    for start in range(0, len(gallery_ND), block_rows):
        block_ND = gallery_ND[start : start + block_rows]
        block_QF, places_QF = inner_products(query_QD, block_ND).topk(min(num_rows, len(block_ND)), dim=1)
        if start:
            block_QF = torch.cat([scores_QF, block_QF], dim=1)
            places_QF = torch.cat([rows_QF, places_QF + start], dim=1)
            block_QF, order_QF = block_QF.topk(min(num_rows, block_QF.shape[1]), dim=1)
            places_QF = places_QF.gather(1, order_QF)
        scores_QF, rows_QF = block_QF, places_QF
    return scores_QF, rows_QF
