"""The two sides of a search as fusions of one picture and one text: which towers, which weights, which rows.

Fusions and specs of a model come in, a side's towers go out (`towers_of`); vectors by tower come in, one vector a row
goes out (`fuse_rows`). `loaded` calls both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mim_lightning.fields import IMAGE, PRODUCT_TEXT, TEXT, field_name
from mim_lightning.model.fusion import Fusions, fuse
from mim_lightning.types import Embeddings, ImageSpec, InputSpec


def kind_of(spec: InputSpec) -> str:
    """Return "image" or "text", what a tower with this spec takes."""
    return IMAGE if isinstance(spec, ImageSpec) else TEXT


def text_tower(kinds: Mapping[str, str], side: str = "query") -> str:
    """Return the tower that embeds a side's texts; a model without one for short queries reads them as product texts.

    Raises:
        ValueError: the model has no text tower.
    """
    found = [name for name in (field_name(side, TEXT), PRODUCT_TEXT) if kinds.get(name) == TEXT]
    if not found:
        raise ValueError(f"this model has no text tower; it has {', '.join(kinds)}")
    return found[0]


def towers_of(side: str, fusions: Fusions, kinds: Mapping[str, str]) -> dict[str, str]:
    """Return the towers of a side by kind: the first of its fusion, else those that are named after it."""
    if side in fusions:
        return {kinds[name]: name for name in reversed(list(fusions[side]))}
    image = field_name(side, IMAGE)
    towers = {IMAGE: image} if image in kinds else {}
    return towers | ({TEXT: text_tower(kinds, side)} if TEXT in kinds.values() else {})


def weights_of(
    side: str, fusions: Fusions, towers: Mapping[str, str], given: Mapping[str, float] | None
) -> dict[str, float]:
    """Return the weight of each tower: as given, else as in the side's fusion, else 1.

    Raises:
        ValueError: a weight for a tower that has no part in the side.
    """
    weights = {name: fusions.get(side, {}).get(name, 1.0) for name in towers.values()}
    for name, weight in (given or {}).items():
        if name not in weights:
            raise ValueError(f"weights: '{name}' has no part in a {side}; there are {', '.join(weights)}")
        weights[name] = float(weight)
    return weights


def count_rows(side: str, images: Sequence[Any], texts: Sequence[Any]) -> int:
    """Return the number of rows.

    Raises:
        ValueError: as many images as texts must be given, or none of one kind; a row has neither.
    """
    if len(images) and len(texts) and len(images) != len(texts):
        raise ValueError(f"{side}: {len(images)} images and {len(texts)} texts; give None where a row lacks one")
    num_rows = max(len(images), len(texts))
    for row in range(num_rows):
        if all(not len(part) or part[row] is None for part in (images, texts)):
            raise ValueError(f"{side} {row}: has neither image nor text")
    return num_rows


def fuse_rows(
    side: str, vectors: dict[str, Tensor], present: dict[str, Tensor], weights: Mapping[str, float]
) -> Tensor:
    """Return the unit weighted sum (n, D) of vectors (n, D) by tower, zero where `present` (n,) is False.

    Raises:
        ValueError: a row of which the weights leave nothing.
    """
    used = {name: weights[name] for name in vectors}
    fused = fuse(Embeddings(vectors, present), {side: used}).vectors[side]
    empty = (fused.norm(dim=1) < 0.5).nonzero().flatten()
    if len(empty) or not torch.isfinite(fused).all():
        row = int(empty[0]) if len(empty) else 0
        raise ValueError(f"{side} {row}: weights {used} leave nothing of it")
    return fused
