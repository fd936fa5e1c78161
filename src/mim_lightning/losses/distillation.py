"""Losses of a tower or fusion against vectors of another model, the teacher: one value a row.

The teacher's vectors are given and get no gradient. B local rows, G gathered rows, D and E dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mim_lightning.losses.gather import gather_rows, gather_with_gradient, world_size
from mim_lightning.precision import at_least_float32
from mim_lightning.types import Embeddings

COSINE, RELATIONAL = "cosine", "relational"
TEACHER_LOSSES = (COSINE, RELATIONAL)
ROWS_AT_ONCE = 2**22  # entries of the tables of similarities that are in memory, of which backward makes each again


def distillation_loss(
    loss: str,
    student_BD: Tensor,
    teacher_BE: Tensor,
    present_B: Tensor,
    keys_B: Tensor,
    temperature: float,
    weights_B: Tensor | None = None,
) -> Tensor:
    """Return the loss of this rank's rows, whose mean over ranks is the mean over the rows of all that have both.

    Args:
        loss: COSINE, of one dimension, or RELATIONAL.
        student_BD, teacher_BE: of unit length.
        present_B: rows that have both.
        keys_B: what the teacher's vectors are of: equal keys have equal vectors.
        temperature: of RELATIONAL.
        weights_B: of rows; None: all 1.
    """
    weights_B = present_B.to(student_BD.dtype) * (1.0 if weights_B is None else weights_B.to(student_BD.dtype))
    if loss == COSINE:
        losses_B = 1.0 - (student_BD * teacher_BE).sum(1)
    else:
        losses_B, is_compared_B = _relational(student_BD, teacher_BE, present_B, keys_B, temperature)
        weights_B = weights_B * is_compared_B
    total = gather_rows(weights_B.sum()[None]).sum()
    return (losses_B * weights_B).sum() * world_size() / total.masked_fill(total == 0, 1)


def _relational(
    student_BD: Tensor, teacher_BE: Tensor, present_B: Tensor, keys_B: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the loss of each row, (B,), and whether another row was there to compare it with.

    Gathered once, the rows are compared a block at a time.
    """
    student_GD = gather_with_gradient(student_BD)
    teacher_GE, present_G, keys_G = gather_rows(teacher_BE), gather_rows(present_B.long()) > 0, gather_rows(keys_B)
    size, losses, compared = max(1, ROWS_AT_ONCE // len(keys_G)), [], []
    for start in range(0, len(keys_B), size):
        block = slice(start, start + size)
        columns_bG = present_G & (keys_B[block, None] != keys_G)
        parts = student_BD[block], student_GD, teacher_BE[block], teacher_GE, columns_bG, temperature
        is_split = len(keys_B) > size
        losses.append(checkpoint(relational, *parts, use_reentrant=False) if is_split else relational(*parts))
        compared.append(columns_bG.any(1))
    return torch.cat(losses), torch.cat(compared)


def relational(
    student_BD: Tensor,
    student_GD: Tensor,
    teacher_BE: Tensor,
    teacher_GE: Tensor,
    columns_BG: Tensor,
    temperature: float,
) -> Tensor:
    """Return KL(teacher || student) of the softmax over a row's similarities to the other rows, (B,).

    Only how near rows are to each other is compared, so the dimensions may differ. Source: the similarity distributions
    of SEED (Fang et al. 2021, arXiv 2101.04731, eq. 3 to 5), between the rows of the batch instead of a queue and
    without the row itself, both at one temperature; relational distillation in the sense of Park et al. 2019 (arXiv
    1904.05068), whose Huber loss of distances weighs far rows as much as near ones.

    Args:
        columns_BG: which rows each is compared with; the loss of a row without any is 0.
    """
    lowest = torch.finfo(student_BD.dtype).min / 2  # not -inf: 0 times it would be nan

    def log_softmax(rows: Tensor, columns: Tensor) -> Tensor:
        return F.log_softmax((rows @ columns.T / temperature).masked_fill(~columns_BG, lowest), dim=1)

    student_BG, teacher_BG = log_softmax(student_BD, student_GD), log_softmax(teacher_BE, teacher_GE)
    return (teacher_BG.exp() * (teacher_BG - student_BG)).masked_fill(~columns_BG, 0.0).sum(1)


def with_vectors(embeddings: Embeddings, vectors: Mapping[str, Tensor]) -> Embeddings:
    """Return embeddings with columns of vectors beside them; zeros are no vector."""
    dtype = at_least_float32(next(iter(embeddings.vectors.values()))).dtype
    given = {name: part_BE.to(dtype) for name, part_BE in vectors.items()}
    present = {name: part_BE.any(1) for name, part_BE in given.items()}
    return Embeddings({**embeddings.vectors, **given}, {**embeddings.present, **present})
