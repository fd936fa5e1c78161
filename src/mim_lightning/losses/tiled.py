"""The built-in losses of all pairs, a tile of similarities at a time: values and gradients in O(B·D) memory.

InfoNCE takes two passes over the tiles of a pair, to sum the negatives and for the gradient: four products of matrices.
Sigmoid takes one pass and three products. The total is a number, so its gradient is computed with it, and the backward
pass multiplies. After Inf-CL (Cheng et al. 2024, arXiv 2410.17243), here with several positives a row, and with both
directions of a pair from the same tiles. The memory of the encoders is a matter of `model.gradient_cache`.

N pairs, B rows of this rank, G columns of all ranks, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mim_lightning.losses.contrastive import info_nce, sigmoid
from mim_lightning.losses.gather import sum_over_ranks
from mim_lightning.losses.pair_tiles import PairTiles, Side
from mim_lightning.precision import plain_float32

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
# rows and columns of a tile: two tiles in float32 are 8 MiB, near the cores, or 512 MiB on a GPU (not measured there)
CPU_TILE, GPU_TILE = 1024, 8192


class TiledResult(NamedTuple):
    """Losses of all pairs. The mean of `loss` and `per_pair` over ranks is that of the global batch."""

    loss: Tensor  # weighted sum, which alone has a gradient
    per_pair: Tensor
    num_rows: Tensor  # rows with a positive, of all ranks, pairs and directions
    num_negatives: Tensor  # columns that are no positive, summed over those rows


def has_tiled_form(loss: PairLoss) -> bool:
    return function_of(loss) in _FORMS


def tiled_losses(
    loss: PairLoss,
    pairs: Sequence[tuple[Side, Side]],
    weights: Sequence[float],
    scales_N: Tensor,
    biases_N: Tensor | None = None,
    tile: int | None = None,
) -> TiledResult:
    """Compute the loss of each pair: the mean over rows with a positive, and over both directions.

    A row's loss is that of `info_nce` or `sigmoid`, where a positive counts by its grade: in InfoNCE as its weight in
    the mean over positives, in sigmoid as a factor of its term. The mean over rows is weighted by `Side.weights`.

    Args:
        loss: `info_nce` or `sigmoid`.
        pairs: the left side has the rows of this rank, the right side those of all ranks.
        weights: of the pairs.
        scales_N: logit scale of each pair, up to `pair_tiles.MAX_SCALE`.
        biases_N: added to the logits of each pair; None: 0.
        tile: rows and columns of a tile; None: what suits the device.
    """
    tensors = {id(side.vectors): side.vectors for pair in pairs for side in pair}
    order = {key: idx for idx, key in enumerate(tensors)}
    places = [(order[id(left.vectors)], order[id(right.vectors)]) for left, right in pairs]
    biases_N = torch.zeros_like(scales_N) if biases_N is None else biases_N
    tile = tile or (CPU_TILE if scales_N.device.type == "cpu" else GPU_TILE)
    form = _FORMS[function_of(loss)]
    return TiledResult(*_Tiled.apply(form, pairs, places, weights, tile, scales_N, biases_N, *tensors.values()))


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        form: Callable[[list[PairTiles]], None],
        pairs: Sequence[tuple[Side, Side]],
        places: Sequence[tuple[int, int]],
        weights: Sequence[float],
        tile: int,
        scales_N: Tensor,
        biases_N: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        gradients = [torch.zeros_like(part, dtype=dtype) for part in tensors] if any(ctx.needs_input_grad) else []
        # no larger than the batch, in eights: the second buffer then starts at an aligned address, as with a whole tile
        tile = max(1, min(tile, 8 * math.ceil(max(map(len, tensors)) / 8)))
        buffers = tensors[0].new_empty(2, tile * tile, dtype=dtype)
        scalars = zip(weights, scales_N.tolist(), biases_N.tolist(), strict=True)
        tiles = [
            PairTiles(*pair, *values, tile, buffers, (gradients[left], gradients[right]) if gradients else None)
            for pair, (left, right), values in zip(pairs, places, scalars, strict=True)
        ]
        # TensorFloat-32, if it is on for the encoders, rounds logits up to 100 by up to 0.1
        with plain_float32(buffers.device.type):
            form(tiles)
        if gradients:
            of_scalars = [torch.stack([getattr(t, f"{name}_gradient") for t in tiles]) for name in ("scale", "bias")]
            ctx.gradients = [*of_scalars, *gradients]
            ctx.dtypes = [part.dtype for part in (scales_N, biases_N, *tensors)]
        values_N = torch.stack([t.value for t in tiles])
        num_rows, num_negatives = torch.stack([t.counts for t in tiles]).sum(0).unbind()
        ctx.mark_non_differentiable(values_N, num_rows, num_negatives)
        return (values_N * values_N.new_tensor(weights)).sum(), values_N, num_rows, num_negatives

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Any, ...]:
        parts = [(part * gradient).to(dtype) for part, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)]
        return (None, None, None, None, None, *parts)


def _info_nce(pairs: list[PairTiles]) -> None:
    for pair in pairs:
        pair.sum_negatives()
    sum_over_ranks([part for pair in pairs for part in pair.shared_negatives])
    if lost := [pair for pair in pairs if pair.has_lost_sums()]:  # the same pairs on every rank
        for pair in lost:
            pair.sum_negatives(in_float64=True)
        sum_over_ranks([part for pair in lost for part in pair.shared_negatives])
    for pair in pairs:
        pair.sum_positives()
    sum_over_ranks([part for pair in pairs for part in pair.shared_positives])
    for pair in pairs:
        pair.average_info_nce()


def _sigmoid(pairs: list[PairTiles]) -> None:
    for pair in pairs:
        pair.count_positives()
    sum_over_ranks([part for pair in pairs for part in pair.shared_counts])
    for pair in pairs:
        pair.average_sigmoid()


_FORMS: dict[Callable[..., Any], Callable[[list[PairTiles]], None]] = {info_nce: _info_nce, sigmoid: _sigmoid}


def function_of(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that a config's `_partial_` without arguments stands for."""
    return loss.func if isinstance(loss, partial) and not loss.args and not loss.keywords else loss
