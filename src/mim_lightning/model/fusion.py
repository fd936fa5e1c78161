"""Fusions: named combinations of towers that may stand wherever a tower may.

Embeddings of the towers come in, the same with the fused vectors added go out. `matcher` calls it in training
and validation, a search may call it again with other weights, without encoding anything anew.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from mim_lightning.types import Embeddings

Fusions = Mapping[str, Mapping[str, float]]  # fusion name -> tower name -> weight


def fuse(embeddings: Embeddings, fusions: Fusions) -> Embeddings:
    """Add the unit-length weighted sum of each fusion's towers.

    A row that lacks one part is the sum of the others; it lacks the fusion only if it lacks all parts. The
    paper's own way of fusing is not public: the weighted sum is our choice.
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
    """Raise a ValueError for a fusion of nothing, or of a tower that is not there."""
    for name, weights in fusions.items():
        if not weights:
            raise ValueError(f"model.fusions.{name}: has no towers")
        for part in weights:
            if part not in towers:
                raise ValueError(f"model.fusions.{name}: no tower '{part}'; there are {list(towers)}")
