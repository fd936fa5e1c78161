"""Contrastive losses of one side of a pair against the other: one value a row.

B local rows, G gathered columns, D dimension. Besides logits a loss gets two boolean masks: the positives of each row,
and the columns that are present. A present column that is no positive is a negative.
For a loss of your own see `Objective`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(logits_BG: Tensor, positives_BG: Tensor, columns_G: Tensor) -> Tensor:
    """Return InfoNCE for several positives a row, (B,): the mean over positives of -log softmax.

    The softmax of each positive is over itself and the row's negatives, without the other positives, so no relevant
    product is pushed away. With one positive a row this is the usual InfoNCE (van den Oord et al. 2018, eq. 4). Rows
    without a positive give 0.
    """
    negatives_BG = columns_G & ~positives_BG
    negatives_B = logits_BG.masked_fill(~negatives_BG, -torch.inf).logsumexp(1, keepdim=True)
    # -log(e^p / (e^p + e^n)) = softplus(n - p); a row without negatives has n = -inf, so its loss is 0
    losses_BG = F.softplus(negatives_B.clamp(min=torch.finfo(logits_BG.dtype).min / 2) - logits_BG)
    return _row_mean(losses_BG, positives_BG)


def sigmoid(logits_BG: Tensor, positives_BG: Tensor, columns_G: Tensor) -> Tensor:
    """Return the pairwise sigmoid loss, (B,): a binary classification of every pair (Zhai et al. 2023, eq. 1).

    The logits include the learned bias. Summed over columns, as in the paper.
    """
    signs_BG = torch.where(positives_BG, 1.0, -1.0)
    return (F.softplus(-signs_BG * logits_BG) * columns_G).sum(1)


def _row_mean(values_BG: Tensor, mask_BG: Tensor) -> Tensor:
    counts_B = mask_BG.sum(1).clamp(min=1)
    # masked before the sum: inf times 0 would be nan
    return values_BG.masked_fill(~mask_BG, 0.0).sum(1) / counts_B
