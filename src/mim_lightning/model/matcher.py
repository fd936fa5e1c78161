"""The matcher: named towers, some of them tied, and the fusions over them.

A Batch comes in, Embeddings go out; it knows no labels, no loss, no ranks. Training, evaluation and search all
hold this one object, and a checkpoint is its weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mim_lightning.model.fusion import Fusions, check_fusions, fuse
from mim_lightning.model.tower import Tower
from mim_lightning.types import Batch, Embeddings, InputSpec, TowerInput, side_of


class Matcher(nn.Module):
    """Towers by name. `tied` lends one tower to another name: same encoder, same projection, same weights.

    Args:
        towers: the towers that own weights.
        tied: borrowed name -> name in `towers`.
        fusions: fusion name -> tower name -> weight.
    """

    def __init__(self, towers: Mapping[str, Tower], tied: Mapping[str, str], fusions: Fusions) -> None:
        super().__init__()
        for name, owner in tied.items():
            if owner not in towers:
                raise ValueError(f"model.tied.{name}: no tower '{owner}' with weights of its own; {list(towers)} have")
        for name in (*towers, *tied, *fusions):
            side_of(name)
        widths = {name: tower.width for name, tower in towers.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"towers have embeddings of different widths {widths}; set embed_dim")
        self.towers = nn.ModuleDict(towers)
        self.owner_of = {name: tied.get(name, name) for name in (*towers, *tied)}
        check_fusions(fusions, self.tower_names)
        self.fusions = {name: dict(weights) for name, weights in fusions.items()}

    @property
    def tower_names(self) -> tuple[str, ...]:
        return tuple(self.owner_of)

    @property
    def names(self) -> tuple[str, ...]:
        """Towers and fusions."""
        return (*self.owner_of, *self.fusions)

    @property
    def dimension(self) -> int:
        """Width of the embeddings."""
        return next(self.tower(name).width for name in self.towers)

    def tower(self, name: str) -> Tower:
        tower = self.towers[self.owner_of[name]]
        assert isinstance(tower, Tower)
        return tower

    def input_specs(self) -> dict[str, InputSpec]:
        """Return what each tower's encoder wants to be given, by tower name."""
        return {name: self.tower(name).encoder.spec for name in self.owner_of}

    def forward(self, batch: Batch) -> Embeddings:
        """Embed every tower that the batch has inputs for, and every fusion of at least one of them."""
        names = [name for name in self.owner_of if name in batch.inputs]
        encoded = self._encode({name: batch.inputs[name] for name in names})
        vectors, present = {}, {}
        for name in names:
            rows_B = batch.rows[name]
            present[name] = rows_B >= 0
            # multiplied, not replaced: an input that no row uses must stay in the graph for DDP
            vectors[name] = encoded[name][rows_B.clamp(min=0)] * present[name][:, None]
        return fuse(Embeddings(vectors, present), _possible(self.fusions, names))

    def _encode(self, inputs: Mapping[str, TowerInput]) -> dict[str, Tensor]:
        """Encode each tower's distinct inputs; images of tied towers go through their encoder together."""
        encoded: dict[str, Tensor] = {}
        for group in self._groups(inputs):
            parts = [inputs[name] for name in group]
            if len(group) == 1:
                encoded[group[0]] = self.tower(group[0])(parts[0])
            else:
                # one pass is faster, and batch normalisation sees street and shop pictures as one domain
                images = [part for part in parts if isinstance(part, Tensor)]
                vectors = self.tower(group[0])(torch.cat(images))
                encoded |= dict(zip(group, vectors.split([len(part) for part in images]), strict=True))
        return encoded

    def _groups(self, inputs: Mapping[str, TowerInput]) -> Iterable[list[str]]:
        groups: dict[object, list[str]] = {}
        for name, value in inputs.items():
            key = (self.owner_of[name], value.shape[1:]) if isinstance(value, Tensor) else name
            groups.setdefault(key, []).append(name)
        return groups.values()


def _possible(fusions: Fusions, towers: Iterable[str]) -> dict[str, dict[str, float]]:
    """Restrict fusions to the towers at hand; drop those with none left."""
    kept = {name: {t: w for t, w in parts.items() if t in set(towers)} for name, parts in fusions.items()}
    return {name: parts for name, parts in kept.items() if parts}
