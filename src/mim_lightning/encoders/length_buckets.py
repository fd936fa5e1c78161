"""Encoding of texts in buckets of similar length: in one batch, all texts are padded to the longest."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

MIN_SAVED = 0.1  # of the tokens with padding: below it one pass is as fast

Tokens = Mapping[str, Tensor]


def encode_by_length(encode: Callable[[Tokens], Tensor], tokens: Tokens, num_buckets: int) -> Tensor:
    """Return the features of `encode(tokens)`, (n, width), computed on texts sorted by length, a bucket at a time.

    They are equal up to rounding; dropout draws other masks. On a GPU the host waits for the lengths.

    Args:
        encode: whose features of a text do not depend on its padding, which is on the right.
        tokens: (n, L) by name, with an `attention_mask`.
        num_buckets: of equal numbers of texts; one if they save too little.
    """
    mask = tokens["attention_mask"]
    lengths, order = mask.sum(1).cpu().sort(stable=True)
    parts = [part for part in order.tensor_split(num_buckets) if len(part)]
    longest = [int(part.max()) for part in lengths.tensor_split(num_buckets) if len(part)]
    num_tokens = sum(len(part) * length for part, length in zip(parts, longest, strict=True))
    if num_tokens > (1 - MIN_SAVED) * mask.numel():
        return encode(tokens)
    features = [
        encode({name: tensor[part.to(tensor.device), :length] for name, tensor in tokens.items()})
        for part, length in zip(parts, longest, strict=True)
    ]
    return torch.cat(features)[order.argsort().to(mask.device)]
