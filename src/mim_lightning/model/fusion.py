"""Fusions: named weighted sums of towers, which may be used wherever a tower may.

They are computed from the embeddings of the towers, so their weights can change without encoding again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from mim_lightning.types import Embeddings

Fusions = Mapping[str, Mapping[str, float]]  # fusion name -> tower name -> weight


def fuse(embeddings: Embeddings, fusions: Fusions) -> Embeddings:
    """Add the unit-length weighted sum of each fusion's towers.

    A row without one of the towers is the sum of the others; without any it has no fusion. The paper's fusion is not
    public: the weighted sum is our choice.
    """
    vectors, present = dict(embeddings.vectors), dict(embeddings.present)
    for name, weights in fusions.items():
        # absent vectors are zero, so they add nothing
        total_BD = sum(weight * vectors[part] for part, weight in weights.items())
        assert isinstance(total_BD, torch.Tensor)
        vectors[name] = F.normalize(total_BD, dim=-1)
        present[name] = torch.stack([present[part] for part in weights]).any(0)
    return Embeddings(vectors, present)


def check_fusions(fusions: Fusions, towers: tuple[str, ...]) -> None:
    """Raise a ValueError for a fusion of nothing, of a tower that is not there, or that has the name of a tower."""
    for name, weights in fusions.items():
        if name in towers:
            raise ValueError(f"model.fusions.{name}: is a tower of this model; give another name")
        if not weights:
            raise ValueError(f"model.fusions.{name}: has no towers")
        for part in weights:
            if part not in towers:
                raise ValueError(f"model.fusions.{name}: no tower '{part}'; there are {list(towers)}")
