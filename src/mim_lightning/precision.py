"""Computing in float32 where half precision would round too much, and products that round alike in any shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_QUERIES, TILE_ROWS, TILE_WIDTH = 64, 1024, 512  # of a matrix product on a CPU


def at_least_float32(values: Tensor) -> Tensor:
    """Return values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@contextmanager
def plain_float32(device_type: str) -> Iterator[None]:
    """Multiply in float32, without autocast and TensorFloat-32, whatever precision a trainer has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def inner_products(query_QD: Tensor, gallery_ND: Tensor) -> Tensor:
    """Return the inner products (Q, N) of queries and gallery rows, without gradients.

    On a CPU each depends on its two vectors alone, to the last bit, whatever rows, queries and threads there are: a
    BLAS chooses by the shape of a product in which order it adds, so all products have one shape. On a GPU they do not.

    Source: our choice.
    """
    if not query_QD.is_cpu:
        return query_QD @ gallery_ND.T
    scores_QN = query_QD.new_empty(len(query_QD), len(gallery_ND))
    tiles_TD = [_pad_rows(part_TD, TILE_QUERIES) for part_TD in query_QD.split(TILE_QUERIES)]
    padded_TR = query_QD.new_empty(TILE_QUERIES, TILE_ROWS)
    for part_RD, scores_QR in zip(gallery_ND.split(TILE_ROWS), scores_QN.split(TILE_ROWS, dim=1), strict=True):
        rows_RD = _pad_rows(part_RD, TILE_ROWS)
        for tile_TD, scores_TR in zip(tiles_TD, scores_QR.split(TILE_QUERIES), strict=True):
            if scores_TR.shape == padded_TR.shape:
                _multiply(tile_TD, rows_RD, scores_TR)
            else:
                _multiply(tile_TD, rows_RD, padded_TR)
                scores_TR.copy_(padded_TR[: len(scores_TR), : len(part_RD)])
    return scores_QN


def _multiply(tile_TD: Tensor, rows_RD: Tensor, scores_TR: Tensor) -> None:
    # of wide vectors part by part: a BLAS may divide a long sum among its threads
    first, *others = zip(tile_TD.split(TILE_WIDTH, dim=1), rows_RD.split(TILE_WIDTH, dim=1), strict=True)
    torch.mm(first[0], first[1].T, out=scores_TR)
    for part_TE, part_RE in others:
        scores_TR.addmm_(part_TE, part_RE.T)


def _pad_rows(vectors_ND: Tensor, num_rows: int) -> Tensor:
    return F.pad(vectors_ND, (0, 0, 0, num_rows - len(vectors_ND))) if len(vectors_ND) < num_rows else vectors_ND
