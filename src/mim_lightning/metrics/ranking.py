"""Exact top-k by inner product: which products of a gallery come first for each query.

In: query vectors, gallery vectors and the product key of each gallery row. Out: product keys and scores,
best first, one hit a product. Called by `retrieval`; ids only, row positions never leave this file.
FAISS finds the first rows fast; queries whose tied scores reach past what it fetched are ranked in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import faiss
import torch
from torch import Tensor

from mim_lightning.types import NO_KEY

_FAISS_GPU_LIMIT = 2048  # rows a query; more are refused by its kernels
_SPARE_PRODUCTS = 200  # of so many products all images are fetched at once
_FETCH_BYTES = 64  # a fetched row: key and score, and their copies while sorting
_FULL_BYTES = 24  # a gallery row when ranked in full: score, its best, masks and their running count


@dataclass(frozen=True)
class _Gallery:
    vectors: Tensor  # (N, D) ascending by product key, so that a lower position means a lower key
    product_idx: Tensor  # (N,) position in product_keys
    product_keys: Tensor  # (P,) distinct, ascending


def rank_gallery(
    query_vectors_QD: Tensor,
    gallery_vectors_ND: Tensor,
    gallery_product_keys_N: Tensor,
    depth: int,
    memory_bytes: int = 2**29,
) -> tuple[Tensor, Tensor]:
    """Rank the products of a gallery for each query by inner product, exactly.

    A product with several gallery rows (images) is one hit, with its best score. Equal scores stand in
    ascending order of product key, at the cut as well: keys are digests, so the order is fixed, the same for
    any order of rows, and knows nothing of relevance. A model that embeds everything alike scores chance.
    Scores are float32 whatever autocast or the matmul precision say; "equal" means equal as computed, and
    scores that differ by rounding alone may change places between devices and chunk sizes.

    Args:
        query_vectors_QD: (Q, D) finite; queries that are absent have been left out by the caller.
        gallery_vectors_ND: (N, D) finite, likewise.
        gallery_product_keys_N: (N,) int64; rows of one product share a key.
        depth: how many products a query is given.
        memory_bytes: bound on working memory beside the vectors and the answer; sets the size of chunks.

    Returns:
        Product keys (Q, K) and scores (Q, K) float32, best first; K is `depth` or the number of products.

    Raises:
        ValueError: no gallery, sizes that do not fit, depth below 1, a gallery row without a product
            key, values that are not finite.

    Source: our choice.
    """
    _check(query_vectors_QD, gallery_vectors_ND, gallery_product_keys_N, depth)
    gallery = _sorted_gallery(gallery_vectors_ND, gallery_product_keys_N)
    keep = min(depth, len(gallery.product_keys))
    per_query = _FETCH_BYTES * _num_fetched(gallery, keep)
    if not query_vectors_QD.is_cpu:  # torch's way, there in case FAISS has no GPU, holds the whole row of scores
        per_query += _FULL_BYTES * len(gallery.vectors)
    chunks = query_vectors_QD.detach().float().split(max(1, memory_bytes // per_query))
    ranked = [_rank_chunk(chunk, gallery, keep, memory_bytes) for chunk in chunks]
    product_idx_QK, scores_QK = (torch.cat(parts) for parts in zip(*ranked, strict=True))
    return gallery.product_keys[product_idx_QK], scores_QK


def _check(query_QD: Tensor, gallery_ND: Tensor, product_keys_N: Tensor, depth: int) -> None:
    if depth < 1 or len(gallery_ND) == 0:
        raise ValueError(f"ranking needs a depth (is {depth}) and a gallery (has {len(gallery_ND)} rows)")
    if query_QD.shape[1:] != gallery_ND.shape[1:] or len(product_keys_N) != len(gallery_ND):
        shapes = [tuple(part.shape) for part in (query_QD, gallery_ND, product_keys_N)]
        raise ValueError(f"query, gallery and product keys do not fit each other: {shapes}")
    if (product_keys_N == NO_KEY).any():
        raise ValueError("a gallery row has no product key")
    for what, vectors in (("query", query_QD), ("gallery", gallery_ND)):
        num_bad = int((~vectors.isfinite().all(dim=1)).sum())
        if num_bad:
            raise ValueError(f"{num_bad} of {len(vectors)} {what} vectors are not finite")


def _sorted_gallery(vectors_ND: Tensor, product_keys_N: Tensor) -> _Gallery:
    order = product_keys_N.argsort(stable=True)
    keys_P, idx_N = product_keys_N[order].unique_consecutive(return_inverse=True)
    return _Gallery(vectors_ND.detach().float()[order].contiguous(), idx_N, keys_P)


def _num_fetched(gallery: _Gallery, keep: int) -> int:
    """Return how many rows usually hold `keep` products and one row more, which shows where they end."""
    num_rows, num_products = len(gallery.vectors), len(gallery.product_keys)
    if num_rows == num_products:
        return min(num_rows, keep + 1)
    # Fetching far more than `keep` costs FAISS more than ranking the queries that need it in full.
    return min(num_rows, keep + 1 + min(keep, _SPARE_PRODUCTS) * num_rows // num_products)


def _rank_chunk(query_QD: Tensor, gallery: _Gallery, keep: int, memory_bytes: int) -> tuple[Tensor, Tensor]:
    num_fetched = _num_fetched(gallery, keep)
    scores_QF, rows_QF = _fetch_rows(query_QD, gallery.vectors, num_fetched)
    products_QK, scores_QK = _one_hit_a_product(scores_QF, gallery.product_idx[rows_QF], keep)
    if num_fetched < len(gallery.vectors):
        # Rows that were not fetched may equal the last one that was: only hits above it are certain.
        unsure = (scores_QK[:, -1] <= scores_QF[:, -1]).nonzero().flatten()
        for part in unsure.split(max(1, memory_bytes // (_FULL_BYTES * len(gallery.vectors)))):
            products_QK[part], scores_QK[part] = _rank_in_full(query_QD[part], gallery, keep)
    return products_QK, scores_QK


def _fetch_rows(query_QD: Tensor, gallery_ND: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return scores and positions (Q, F) of the best rows, best first, equal scores in any order."""
    if query_QD.is_cpu:
        scores, rows = faiss.knn(query_QD.numpy(), gallery_ND.numpy(), num_rows, faiss.METRIC_INNER_PRODUCT)
        return torch.from_numpy(scores), torch.from_numpy(rows)
    if query_QD.is_cuda and _faiss_has_gpu() and num_rows <= _FAISS_GPU_LIMIT:
        return _fetch_rows_faiss_gpu(query_QD, gallery_ND, num_rows)
    with _plain_float32(query_QD.device.type):
        scores_QF, rows_QF = (query_QD @ gallery_ND.T).topk(num_rows, dim=1)
    return scores_QF, rows_QF


def _faiss_has_gpu() -> bool:
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


@lru_cache(maxsize=1)  # scratch memory of about a gigabyte, slow to get
def _faiss_gpu_resources() -> Any:
    return faiss.StandardGpuResources()


def _fetch_rows_faiss_gpu(query_QD: Tensor, gallery_ND: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    import faiss.contrib.torch_utils  # teaches knn_gpu to take tensors of the device

    resources, metric = _faiss_gpu_resources(), faiss.METRIC_INNER_PRODUCT
    query_QD, device_idx = query_QD.contiguous(), query_QD.device.index
    scores_QF, rows_QF = faiss.knn_gpu(resources, query_QD, gallery_ND, num_rows, metric=metric, device=device_idx)
    return scores_QF, rows_QF


def _one_hit_a_product(scores_QF: Tensor, products_QF: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return products and scores (Q, K): the best row of each, ties ascending by product."""
    products_QF, by_product = products_QF.sort(dim=1, stable=True)  # rows come best first and stay so
    scores_QF = scores_QF.gather(1, by_product)
    is_repeat = products_QF[:, 1:] == products_QF[:, :-1]
    scores_QF[:, 1:].masked_fill_(is_repeat, -torch.inf)
    scores_QF, by_score = scores_QF.sort(dim=1, descending=True, stable=True)
    return products_QF.gather(1, by_score[:, :keep]), scores_QF[:, :keep].contiguous()


def _rank_in_full(query_QD: Tensor, gallery: _Gallery, keep: int) -> tuple[Tensor, Tensor]:
    """Return products and scores (Q, K) from the scores of the whole gallery, ties and all."""
    with _plain_float32(query_QD.device.type):
        scores_QP = _best_of_each_product(query_QD @ gallery.vectors.T, gallery)
    last_Q1 = scores_QP.topk(keep, dim=1).values[:, -1:]
    is_above = scores_QP > last_Q1
    is_tied = scores_QP == last_Q1
    room_Q1 = keep - is_above.sum(dim=1, keepdim=True)
    is_hit = is_above | (is_tied & (is_tied.cumsum(dim=1, dtype=torch.int32) <= room_Q1))
    products_QK = is_hit.nonzero()[:, 1].view(-1, keep)
    scores_QK, order_QK = scores_QP.gather(1, products_QK).sort(dim=1, descending=True, stable=True)
    return products_QK.gather(1, order_QK), scores_QK


def _best_of_each_product(scores_QN: Tensor, gallery: _Gallery) -> Tensor:
    num_products = len(gallery.product_keys)
    if num_products == scores_QN.shape[1]:
        return scores_QN
    scores_QP = scores_QN.new_full((len(scores_QN), num_products), -torch.inf)
    return scores_QP.scatter_reduce_(1, gallery.product_idx.expand_as(scores_QN), scores_QN, "amax")


@contextmanager
def _plain_float32(device_type: str) -> Iterator[None]:
    """Multiply in float32, whatever a trainer has set for speed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
