"""A tower: an encoder, a projection, unit length.

Prepared inputs of one kind come in, (n, D) vectors of length 1 go out, float32 or the model's float64; `matcher` holds
the towers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mim_lightning.encoders.interface import Encoder
from mim_lightning.types import TowerInput


class Tower(nn.Module):
    """`encoder` to `embed_dim` by one linear map without bias, then unit length.

    Without `embed_dim` the encoder's own output is the embedding: for pairs that were trained together, such as
    CLIP's, whose two halves already share a space. A `frozen` encoder stays as it came, and only the map learns.
    """

    def __init__(self, encoder: Encoder, embed_dim: int | None, frozen: bool = False) -> None:
        super().__init__()
        if embed_dim is not None and (type(embed_dim) is not int or embed_dim < 0):
            raise ValueError(f"embed_dim={embed_dim}: give a whole number above 0, or null for the encoder's own width")
        self.encoder, self.frozen = encoder, frozen
        if frozen:
            encoder.requires_grad_(False)
        self.width = embed_dim or encoder.width
        self.projection = nn.Linear(encoder.width, embed_dim, bias=False) if embed_dim else None

    def train(self, mode: bool = True) -> Tower:
        super().train(mode)
        if self.frozen:
            self.encoder.eval()  # no dropout, and batch statistics as they came
        return self

    def forward(self, inputs: TowerInput) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.encoder(inputs)
        # the last step in float32 or better: rounding to bfloat16 would merge neighbours
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            if self.projection is not None:
                features = F.linear(features, self.projection.weight.to(features.dtype))
            return F.normalize(features, dim=-1)
