"""A query or product made of several inputs: which towers of its side read them, with which weights, in which rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mim_lightning.fields import IMAGE, PRODUCT_TEXT, TEXT, field_name, side_of
from mim_lightning.model.fusion import Fusion, Fusions, weights_of
from mim_lightning.types import AnyOf, ImageSpec, InputSpec, TowerSpec, fields_of


def modality_of(spec: InputSpec) -> str:
    """Return "image" or "text"."""
    return IMAGE if isinstance(spec, ImageSpec) else TEXT


def tower_modalities(specs: Mapping[str, TowerSpec]) -> dict[str, str]:
    """Return "image" or "text" by tower that reads one field, and by field of a tower that reads any of several."""
    parts = {name: list(fields_of(name, spec).values()) for name, spec in specs.items()}
    alone = {
        field: modality_of(part) for spec in specs.values() if isinstance(spec, AnyOf) for field, part in spec.items()
    }
    return alone | {name: modality_of(specs[0]) for name, specs in parts.items() if len(specs) == 1}


def tower_of(name: str, specs: Mapping[str, TowerSpec]) -> str:
    """Return the tower of a name of `tower_modalities`: itself, or one that reads any of several fields, also this."""
    return next(
        (tower for tower, spec in specs.items() if name not in specs and isinstance(spec, AnyOf) and name in spec), name
    )


def find_text_tower(modalities: Mapping[str, str], side: str) -> str | None:
    """Return the tower that embeds a side's texts, if any; without one for short queries, that of product texts."""
    return next((name for name in (field_name(side, TEXT), PRODUCT_TEXT) if modalities.get(name) == TEXT), None)


def text_tower(modalities: Mapping[str, str], side: str = "query") -> str:
    """Return the tower that `find_text_tower` finds.

    Raises:
        ValueError: the model has no text tower.
    """
    name = find_text_tower(modalities, side)
    if name is None:
        raise ValueError(f"this model has no text tower; it has {', '.join(modalities)}")
    return name


def side_towers(side: str, fusions: Fusions, specs: Mapping[str, TowerSpec]) -> dict[str, dict[str, InputSpec]]:
    """Return the towers of a side with the fields that they read: those of its fusion, the tower of its name, or all.

    Without a fusion, a side that has no text tower borrows that of the product texts.
    """
    if side in fusions:
        names = list(weights_of(fusions[side]))
    else:
        names = [side] if side in specs else [name for name in specs if side_of(name) == side]
        modalities = tower_modalities(specs)
        reads_text = any(modality_of(part) == TEXT for name in names for part in fields_of(name, specs[name]).values())
        if not reads_text and TEXT in modalities.values():
            names.append(text_tower(modalities, side))
    return {name: fields_of(name, specs[name]) for name in names}


def main_fields(towers: Mapping[str, Mapping[str, InputSpec]]) -> dict[str, str]:
    """Return the field for a side's images and that for its texts, the first that its towers read, by modality."""
    return dict(reversed([(modality_of(spec), name) for parts in towers.values() for name, spec in parts.items()]))


def side_fusion(
    side: str, fusions: Mapping[str, Fusion], towers: Sequence[str], given: Mapping[str, float] | None, width: int
) -> Fusion:
    """Return the fusion of a side, of equal weights where the model has none; given weights take the place of its own.

    Raises:
        ValueError: a weight for a tower that is not part of the side.
    """
    fusion = fusions.get(side) or Fusion(side, dict.fromkeys(towers, 1.0), width)
    for name in given or {}:
        if name not in fusion:
            raise ValueError(f"weights: '{name}' has no part in a {side}; there are {', '.join(fusion)}")
    return fusion.with_weights({name: float(weight) for name, weight in given.items()}) if given else fusion


def count_rows(side: str, inputs: Mapping[str, Sequence[Any]]) -> int:
    """Return the number of rows of the inputs, by their names in errors.

    Raises:
        ValueError: inputs of different lengths (empty ones aside), or a row without any.
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


def group_rows(towers: Sequence[str | None]) -> dict[str | None, list[int]]:
    """Return the rows of each tower, in order of first appearance."""
    rows: dict[str | None, list[int]] = {}
    for row, tower in enumerate(towers):
        rows.setdefault(tower, []).append(row)
    return rows


@torch.no_grad()
def fuse_rows(side: str, vectors: dict[str, Tensor], present: dict[str, Tensor], fusion: Fusion) -> Tensor:
    """Return the fused unit-length vectors (n, D) of vectors (n, D) by tower, zero where `present` (n,) is False.

    Raises:
        ValueError: the weights cancel all vectors of a row.
    """
    fused = fusion(vectors, present)
    empty = (fused.norm(dim=1) < 0.5).nonzero().flatten()
    if len(empty) or not torch.isfinite(fused).all():
        row = int(empty[0]) if len(empty) else 0
        used = {name: weight for name, weight in fusion.weights.items() if name in vectors}
        raise ValueError(f"{side} {row}: weights {used} leave nothing of it")
    return fused
