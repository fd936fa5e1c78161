"""The rows of greatest inner product, as fast as the device at hand finds them: FAISS, or a matrix product.

Vectors in, scores and row positions out, equal scores in any order. Called by `ranking`, which turns rows into
products and sets ties right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import faiss
import torch
from torch import Tensor

_FAISS_GPU_LIMIT = 2048  # rows a query; more are refused by its kernels


def fetch_rows(query_QD: Tensor, gallery_ND: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return scores and positions (Q, F) of the best rows, best first, equal scores in any order."""
    if query_QD.is_cpu:
        scores, rows = faiss.knn(query_QD.numpy(), gallery_ND.numpy(), num_rows, faiss.METRIC_INNER_PRODUCT)
        return torch.from_numpy(scores), torch.from_numpy(rows)
    if query_QD.is_cuda and _faiss_has_gpu() and num_rows <= _FAISS_GPU_LIMIT:
        return _fetch_rows_faiss_gpu(query_QD, gallery_ND, num_rows)
    with plain_float32(query_QD.device.type):
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


@contextmanager
def plain_float32(device_type: str) -> Iterator[None]:
    """Multiply in float32, whatever a trainer has set for speed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
