"""Gathering of rows and sums over ranks: the only collectives of the loss, and the only place with the world size.

(B, ...) of each rank to (G, ...) of all ranks, in rank order; B is the same on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# what each collective runs within; a clock of training sets it
around_collective: Callable[[], AbstractContextManager[Any]] = nullcontext


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(local_B: Tensor) -> Tensor:
    """Return the rows of all ranks, without gradient (ids, masks)."""
    if world_size() == 1:
        return local_B
    all_G = local_B.new_empty(world_size() * len(local_B), *local_B.shape[1:])
    with around_collective():
        dist.all_gather_into_tensor(all_G, local_B.contiguous())
    return all_G


def own_rows(all_G: Tensor, num_rows: int) -> Tensor:
    """Return this rank's part of the rows of all ranks."""
    start = dist.get_rank() * num_rows if world_size() > 1 else 0
    return all_G[start : start + num_rows]


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
        summed_BD = gradient_GD.new_empty(len(gradient_GD) // world_size(), *gradient_GD.shape[1:])
        with around_collective():
            dist.reduce_scatter_tensor(summed_BD, gradient_GD.contiguous())
        return summed_BD


def sum_over_ranks(parts: Sequence[Tensor]) -> None:
    """Sum tensors over ranks, in place and in one collective; they may differ in dtype, not in shape between ranks."""
    if world_size() == 1:
        return
    # in float64, which holds counts too
    flat = torch.cat([part.flatten().double() for part in parts])
    with around_collective():
        dist.all_reduce(flat)
    for part, summed in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(summed.view_as(part))
