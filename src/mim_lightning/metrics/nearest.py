"""The rows of greatest inner product: by FAISS on a CPU, by a matrix product on any other device.

Vectors in, scores and row positions out, equal scores in any order. Called by `ranking`, which turns rows into
products and sets ties right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import torch
from torch import Tensor


def fetch_rows(query_QD: Tensor, gallery_ND: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return scores and positions (Q, F) of the best rows, best first, equal scores in any order."""
    if query_QD.is_cpu:
        scores, rows = faiss.knn(query_QD.numpy(), gallery_ND.numpy(), num_rows, faiss.METRIC_INNER_PRODUCT)
        return torch.from_numpy(scores), torch.from_numpy(rows)
    # not FAISS on a GPU: to take tensors there, it replaces the search of every index in the process by one without
    # parameters (faiss.contrib.torch_utils)
    with plain_float32(query_QD.device.type):
        scores_QF, rows_QF = (query_QD @ gallery_ND.T).topk(num_rows, dim=1)
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
