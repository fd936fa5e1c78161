"""Texts encoded in buckets have the features that they have alone, in the order that they came in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mim_lightning.encoders.length_buckets import Tokens, encode_by_length


def make_tokens(lengths: list[int]) -> Tokens:
    longest = max(lengths)
    mask = torch.tensor([[1] * length + [0] * (longest - length) for length in lengths])
    return {"input_ids": torch.arange(1, mask.numel() + 1).view_as(mask) * mask, "attention_mask": mask}


@pytest.mark.parametrize(
    ("lengths", "num_buckets", "widths"),
    [
        ([9, 2, 3, 8, 2, 5], 3, [2, 5, 9]),
        ([7], 4, [7]),
        ([3, 9, 1], 8, [1, 3, 9]),
        ([9, 9, 8, 9], 2, [9]),  # nothing to save: one pass
    ],
)
def test_every_text_is_in_a_bucket_of_its_length(lengths: list[int], num_buckets: int, widths: list[int]) -> None:
    seen = []

    def encode(tokens: Tokens) -> Tensor:
        seen.append(tokens["input_ids"].shape[1])
        assert tokens["attention_mask"].shape == tokens["input_ids"].shape
        return (tokens["input_ids"] * tokens["attention_mask"]).double().sum(1, keepdim=True)

    tokens = make_tokens(lengths)
    features = encode_by_length(encode, tokens, num_buckets)
    assert torch.equal(features, tokens["input_ids"].sum(1, keepdim=True).double()) and seen == widths
