"""The matcher: named towers, some of them tied, and their fusions; from a batch to embeddings.

Training, evaluation and search use the same object. It has no labels, no loss and no ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mim_lightning.encoders.interface import one_line
from mim_lightning.fields import FIELDS, IMAGE, TEXT
from mim_lightning.model.fusion import Fusion, check_fusions, fuse
from mim_lightning.model.gradient_cache import encode_cached
from mim_lightning.model.tower import Tower
from mim_lightning.types import AnyOf, Batch, Embeddings, ImageSpec, InputSpec, TextSpec, TowerInput, TowerSpec, side_of


class Matcher(nn.Module):
    """Towers by name; a tied tower shares encoder, projection and weights with another.

    Args:
        towers: the towers that own weights.
        tied: name of a tied tower -> name in `towers`.
        fusions: by name, the config of a `Fusion`: tower name -> weight, and options.
        fields: tower name -> the fields that it reads, in the order of its encoder's spec; a tower that is not named
            reads the field of its own name.
        prompts: tower name -> what begins each of its texts; a tower that is not named has its encoder's for its side.

    Raises:
        ValueError: a name that is not there, a tower of another width, or fields or a prompt that an encoder does not
            fit.
    """

    def __init__(
        self,
        towers: Mapping[str, Tower],
        tied: Mapping[str, str],
        fusions: Mapping[str, Mapping[str, Any]],
        fields: Mapping[str, Sequence[str]] | None = None,
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        for name, owner in tied.items():
            if owner not in towers:
                raise ValueError(f"model.tied.{name}: no tower '{owner}' with weights of its own; {list(towers)} have")
        for name in (*towers, *tied, *fusions):
            side_of(name)
        for name in (*towers, *tied):
            if isinstance(towers[tied.get(name, name)].encoder.spec, tuple) and name not in (fields or {}):
                raise ValueError(f"model.towers.{name}.fields: is missing; its encoder reads several fields")
        widths = {name: tower.width for name, tower in towers.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"towers have embeddings of different widths {widths}; set embed_dim")
        self.towers = nn.ModuleDict(towers)
        self.owner_of = {name: tied.get(name, name) for name in (*towers, *tied)}
        named = {name: tuple(map(str, given)) for name, given in (fields or {}).items()}
        self.fields = {name: given for name, given in named.items() if given != (name,)}
        for name, given in self.fields.items():
            self._validate_fields(name, given)
        self.prompts = self._choose_prompts(prompts or {})
        check_fusions(fusions, self.tower_names)
        # not as an attribute: the property of this name is a plain dict
        self._modules["fusions"] = nn.ModuleDict(
            {name: Fusion(name, config, self.dimension) for name, config in fusions.items()}
        )

    @property
    def tower_names(self) -> tuple[str, ...]:
        return tuple(self.owner_of)

    @property
    def fusions(self) -> dict[str, Fusion]:
        """The fusions by name; their weights and means are `fusions.<name>...` in the state dict."""
        found = self._modules["fusions"]
        assert isinstance(found, nn.ModuleDict)
        return {name: fusion for name, fusion in found.items() if isinstance(fusion, Fusion)}

    def replace_fusion(self, fusion: Fusion) -> None:
        """Put a fusion in the place of that of its name."""
        found = self._modules["fusions"]
        assert isinstance(found, nn.ModuleDict) and fusion.name in found
        found[fusion.name] = fusion

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

    def input_specs(self) -> dict[str, TowerSpec]:
        """Return the input specs of each tower's encoder, by tower name."""
        return {name: self._spec_of(name) for name in self.owner_of}

    def validate_image_size(self, side: int, key: str) -> None:
        """Raise ValueError that names `key` if an image encoder cannot take images of `side` x `side` pixels."""
        for name in self.towers:
            encoder = self.tower(name).encoder
            images = [part for part in _as_tuple(encoder.spec) if isinstance(part, ImageSpec)]
            if not images:
                continue
            try:
                encoder.embed_sample(side)
            except Exception as error:  # architectures raise any kind over a size
                own = " x ".join(map(str, images[0].size))
                raise ValueError(
                    f"{key}={side}: the encoder of tower '{name}' cannot take images of this size, its own is {own}: "
                    f"{one_line(error)}"
                ) from error

    def _spec_of(self, name: str) -> TowerSpec:
        encoder, prompt = self.tower(name).encoder, self.prompts.get(name, "")
        parts = [
            encoder.prompted(part, prompt) if prompt and isinstance(part, TextSpec) else part
            for part in _as_tuple(encoder.spec)
        ]
        if name not in self.fields:
            return parts[0]
        named = dict(zip(self.fields[name], parts, strict=True))
        return AnyOf(named) if getattr(encoder, "reads_any", False) else named

    def _choose_prompts(self, given: Mapping[str, str]) -> dict[str, str]:
        """Return the prompt of each tower that reads texts and has one."""
        chosen = {}
        for name in self.owner_of:
            encoder = self.tower(name).encoder
            reads_text = any(isinstance(part, TextSpec) for part in _as_tuple(encoder.spec))
            if given.get(name) and not reads_text:
                raise ValueError(f"model.towers.{name}.prompt: its encoder reads no texts")
            prompt = given.get(name, getattr(encoder, "prompts", {}).get(side_of(name), ""))
            if prompt and reads_text:
                chosen[name] = prompt
        return chosen

    def _validate_fields(self, name: str, fields: tuple[str, ...]) -> None:
        if name not in self.owner_of:
            raise ValueError(f"model.towers.{name}.fields: no tower '{name}'; there are {list(self.owner_of)}")
        parts = _as_tuple(self.tower(name).encoder.spec)
        wanted = [IMAGE if isinstance(part, ImageSpec) else TEXT for part in parts]
        known = [FIELDS[field].modality if field in FIELDS else TEXT for field in fields]
        if known != wanted or len({*fields}) < len(fields) or any(side_of(field) != side_of(name) for field in fields):
            raise ValueError(
                f"model.towers.{name}.fields={list(fields)}: give the {side_of(name)} fields that its encoder reads: "
                f"{', '.join(wanted)}"
            )

    def forward(self, batch: Batch, micro_batch_size: int | None = None) -> Embeddings:
        """Embed every tower with inputs in the batch, and every fusion of at least one of them.

        Args:
            micro_batch_size: inputs whose activations are in memory at a time, see `encode_cached`; None: all.
        """
        names = [name for name in self.owner_of if name in batch.inputs]
        encoded = self._encode({name: batch.inputs[name] for name in names}, micro_batch_size)
        vectors, present = {}, {}
        for name in names:
            rows_B = batch.rows[name]
            present[name] = rows_B >= 0
            # multiplied, not replaced: DDP needs every input in the graph, used by a row or not
            vectors[name] = encoded[name][rows_B.clamp(min=0)] * present[name][:, None]
        possible = {name: fusion for name, fusion in self.fusions.items() if any(part in vectors for part in fusion)}
        if self.training:
            is_counted = {name: present_B & ~batch.is_padding for name, present_B in present.items()}
            for fusion in possible.values():
                fusion.count_rows(vectors, is_counted)
        return fuse(Embeddings(vectors, present), possible)

    def _encode(self, inputs: Mapping[str, TowerInput], micro_batch_size: int | None) -> dict[str, Tensor]:
        """Encode each tower's distinct inputs; images of tied towers go through their encoder together."""
        encoded: dict[str, Tensor] = {}
        for group in self._groups(inputs):
            parts = [inputs[name] for name in group]
            if micro_batch_size is not None:
                encoded |= dict(zip(group, encode_cached(self.tower(group[0]), parts, micro_batch_size), strict=True))
            elif len(group) == 1:
                encoded[group[0]] = self.tower(group[0])(parts[0])
            else:
                # one pass is faster, and batch normalization gets street and shop images as one domain
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


def _as_tuple(spec: InputSpec | tuple[InputSpec, ...]) -> tuple[InputSpec, ...]:
    return spec if isinstance(spec, tuple) else (spec,)
