"""The two sides of a search as fusions: which towers, which weights, which rows.

Inputs come by field; a side's picture and text are the first fields of their kind that its towers read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mim_lightning.fields import IMAGE, PRODUCT_TEXT, TEXT, field_name, side_of
from mim_lightning.model.fusion import Fusions, fuse
from mim_lightning.types import Embeddings, ImageSpec, InputSpec, TowerSpec, fields_of


def kind_of(spec: InputSpec) -> str:
    """Return "image" or "text", what a field with this spec holds."""
    return IMAGE if isinstance(spec, ImageSpec) else TEXT


def kinds_of(specs: Mapping[str, TowerSpec]) -> dict[str, str]:
    """Return "image" or "text" by tower, of the towers that read one field."""
    fields = {name: fields_of(name, spec) for name, spec in specs.items()}
    return {name: kind_of(next(iter(parts.values()))) for name, parts in fields.items() if len(parts) == 1}


def text_tower(kinds: Mapping[str, str], side: str = "query") -> str:
    """Return the tower that embeds a side's texts; a model without one for short queries reads them as product texts.

    Raises:
        ValueError: the model has no text tower.
    """
    found = [name for name in (field_name(side, TEXT), PRODUCT_TEXT) if kinds.get(name) == TEXT]
    if not found:
        raise ValueError(f"this model has no text tower; it has {', '.join(kinds)}")
    return found[0]


def rows_by_tower(towers: Sequence[str | None]) -> dict[str | None, list[int]]:
    """Return the places of each tower, in order of first appearance."""
    found: dict[str | None, list[int]] = {}
    for row, tower in enumerate(towers):
        found.setdefault(tower, []).append(row)
    return found


def towers_of(side: str, fusions: Fusions, specs: Mapping[str, TowerSpec]) -> dict[str, dict[str, InputSpec]]:
    """Return the towers of a side with their fields: those of its fusion, else those that are named after it.

    Without a fusion and a text tower of its own, a side's texts are read as product texts.
    """
    if side in fusions:
        names = list(fusions[side])
    else:
        names = [name for name in specs if side_of(name) == side]
        kinds = kinds_of(specs)
        if not any(kind_of(part) == TEXT for name in names for part in fields_of(name, specs[name]).values()):
            names += [text_tower(kinds, side)] if TEXT in kinds.values() else []
    return {name: fields_of(name, specs[name]) for name in names}


def first_fields(towers: Mapping[str, Mapping[str, InputSpec]]) -> dict[str, str]:
    """Return the field that holds a side's pictures, and that of its texts, by "image" and "text"."""
    fields = [(kind_of(spec), name) for parts in towers.values() for name, spec in parts.items()]
    return dict(reversed(fields))


def weights_of(
    side: str, fusions: Fusions, towers: Sequence[str], given: Mapping[str, float] | None
) -> dict[str, float]:
    """Return the weight of each tower: as given, else as in the side's fusion, else 1.

    Raises:
        ValueError: a weight for a tower that has no part in the side.
    """
    weights = {name: fusions.get(side, {}).get(name, 1.0) for name in towers}
    for name, weight in (given or {}).items():
        if name not in weights:
            raise ValueError(f"weights: '{name}' has no part in a {side}; there are {', '.join(weights)}")
        weights[name] = float(weight)
    return weights


def count_rows(side: str, inputs: Mapping[str, Sequence[Any]]) -> int:
    """Return the number of rows; `inputs` by what errors call them.

    Raises:
        ValueError: as many of each must be given, or none; a row has nothing.
    """
    given = {name: values for name, values in inputs.items() if len(values)}
    if len({len(values) for values in given.values()}) > 1:
        counts = " and ".join(f"{len(values)} {name}" for name, values in given.items())
        raise ValueError(f"{side}: {counts}; give None where a row lacks one")
    num_rows = max(map(len, given.values()), default=0)
    for row in range(num_rows):
        if all(values[row] is None for values in given.values()):
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
