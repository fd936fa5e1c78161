"""Rows of all processes as one tensor: the only collectives of the training step.

(B, ...) of this rank comes in, (G, ...) of all ranks goes out, in rank order; B is the same on every rank.
`objective` calls it, and it alone knows the world size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(local_B: Tensor) -> Tensor:
    """Return every rank's rows, without gradient (ids, masks)."""
    if world_size() == 1:
        return local_B
    parts = [torch.empty_like(local_B) for _ in range(world_size())]
    dist.all_gather(parts, local_B.contiguous())
    return torch.cat(parts)


def gather_with_gradient(local_BD: Tensor) -> Tensor:
    """Return every rank's rows; the gradient of a row is summed over all ranks that used it as a negative."""
    return local_BD if world_size() == 1 else _Gather.apply(local_BD)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local_BD: Tensor) -> Tensor:
        return gather_rows(local_BD)

    @staticmethod
    def backward(ctx: Any, gradient_GD: Tensor) -> Tensor:
        # each rank holds the gradient of its own loss only; a row's true gradient is the sum over ranks
        summed_GD = gradient_GD.contiguous()
        dist.all_reduce(summed_GD)
        return summed_GD.chunk(world_size())[dist.get_rank()]
