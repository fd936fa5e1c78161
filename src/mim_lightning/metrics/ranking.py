"""Exact top-k by inner product: the products of a gallery that rank first for each query, one hit a product.

FAISS on a CPU, or a matrix product on any other device, fetches the first rows; queries with ties beyond the fetched
rows are ranked in full. Results are product keys, never row positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import faiss
import torch
from torch import Tensor

from mim_lightning.precision import plain_float32
from mim_lightning.types import NO_KEY

_SPARE_PRODUCTS = 200  # for so many products all images are fetched at once
_FETCH_BYTES = 80  # a fetched row: position, product and score, and their copies while sorting
_SCORED_BYTES = 120  # a gallery row when scores are a function: similarities by pair of parts, and their combination
_FULL_BYTES = 24  # a gallery row when ranked in full: score, best of its product, masks and their running count


ScoreFunction = Callable[[Tensor], Tensor]  # queries (Q, E) -> scores (Q, N) of the gallery rows


@dataclass(frozen=True)
class _Gallery:
    vectors: Tensor  # (N, D) as given: a sorted copy would double the memory
    product_idx: Tensor  # (N,) position in product_keys, so that a lower one means a lower key
    product_keys: Tensor  # (P,) distinct, ascending


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
    matmul precision. "Equal" means equal as computed: scores that differ only by rounding may change places between
    devices, chunk sizes and orders of rows.

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
    num_left_out = 0 if left_out_keys_QR is None else left_out_keys_QR.shape[1]
    keep = min(depth + num_left_out, len(keys_P))  # at least `depth` remain, whichever are left out
    per_query = _FETCH_BYTES * _num_fetched(gallery, keep)
    if score is not None:
        per_query = (_FETCH_BYTES * keep) + (_FULL_BYTES + _SCORED_BYTES) * len(gallery.vectors)
    elif not query_vectors_QD.is_cpu:  # a matrix product stores all scores of a query
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
    # One pass over sums: a finite sum has finite values only; that of huge values may overflow.
    suspects = vectors[~vectors.sum(dim=1, dtype=torch.float32).isfinite()]
    num_bad = int((~suspects.isfinite().all(dim=1)).sum())
    if num_bad:
        raise ValueError(f"{num_bad} of {len(vectors)} {what} vectors are not finite")


def even_chunks(num_rows: int, largest: int) -> list[slice]:
    """Return slices that cover the rows, of sizes that differ by at most one; of no rows one empty slice.

    FAISS is slow on few queries, so a small remainder would be expensive.
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
    scores_QF, rows_QF = fetch_rows(query_QD, gallery.vectors, num_fetched)
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
        scores_QN = query_QD @ gallery.vectors.T
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


def fetch_rows(query_QD: Tensor, gallery_ND: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return scores and positions (Q, F) of the rows with the highest inner products, best first, ties in any order."""
    if query_QD.is_cpu:
        scores, rows = faiss.knn(query_QD.numpy(), gallery_ND.numpy(), num_rows, faiss.METRIC_INNER_PRODUCT)
        return torch.from_numpy(scores), torch.from_numpy(rows)
    # no FAISS on a GPU: faiss.contrib.torch_utils replaces the search of every index in the process by one without
    # parameters
    with plain_float32(query_QD.device.type):
        scores_QF, rows_QF = (query_QD @ gallery_ND.T).topk(num_rows, dim=1)
    return scores_QF, rows_QF
