"""Gathering of rows over ranks: the only collectives of the training step, and the only place with the world size.

(B, ...) of each rank to (G, ...) of all ranks, in rank order; B is the same on every rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(local_B: Tensor) -> Tensor:
    """Return the rows of all ranks, without gradient (ids, masks)."""
    if world_size() == 1:
        return local_B
    parts = [torch.empty_like(local_B) for _ in range(world_size())]
    dist.all_gather(parts, local_B.contiguous())
    return torch.cat(parts)


def gather_with_gradient(local_BD: Tensor) -> Tensor:
    """Return the rows of all ranks; the gradient of a row is summed over all ranks."""
    return local_BD if world_size() == 1 else _Gather.apply(local_BD)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local_BD: Tensor) -> Tensor:
        return gather_rows(local_BD)

    @staticmethod
    def backward(ctx: Any, gradient_GD: Tensor) -> Tensor:
        # each rank has the gradient of its own loss only; the gradient of a row is the sum over ranks
        summed_GD = gradient_GD.contiguous()
        dist.all_reduce(summed_GD)
        return summed_GD.chunk(world_size())[dist.get_rank()]
