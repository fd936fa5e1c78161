"""A tower: encoder, projection, normalization to unit length."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mim_lightning.encoders.interface import Encoder
from mim_lightning.types import TowerInput


class Tower(nn.Module):
    """Maps the inputs of `encoder` to (n, D) embeddings of unit length, in float32 or float64.

    The projection to `embed_dim` is linear, without bias. Without `embed_dim` the output of the encoder is the
    embedding: for encoders that were trained together, such as CLIP's, and share a space already. The weights of a
    `frozen` encoder do not change; only the projection is trained.
    """

    def __init__(self, encoder: Encoder, embed_dim: int | None, frozen: bool = False) -> None:
        super().__init__()
        if embed_dim is not None and (type(embed_dim) is not int or embed_dim < 0):
            raise ValueError(f"embed_dim={embed_dim}: give a whole number above 0, or null for the encoder's width")
        self.encoder, self.frozen = encoder, frozen
        if frozen:
            encoder.requires_grad_(False)
        self.width = embed_dim or encoder.width
        self.projection = nn.Linear(encoder.width, embed_dim, bias=False) if embed_dim else None

    def train(self, mode: bool = True) -> Tower:
        super().train(mode)
        if self.frozen:
            self.encoder.eval()  # no dropout, and batch statistics as they are
        return self

    def forward(self, inputs: TowerInput) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.encoder(inputs)
        # the last step in float32 or better: rounding to bfloat16 would merge neighbors
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            if self.projection is not None:
                features = F.linear(features, self.projection.weight.to(features.dtype))
            return F.normalize(features, dim=-1)
