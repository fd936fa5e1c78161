"""The trained model outside training: pictures and words in, unit vectors out.

`load` makes one from a checkpoint, an export folder or the hub; notebooks, the search service and whatever embeds a
catalogue hold it. It keeps no state between calls, so that threads may share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim_lightning.fields import IMAGE, PRODUCT, QUERY, QUERY_IMAGE, TEXT
from mim_lightning.inference.image_inputs import ImageInput, prepare_images
from mim_lightning.inference.loading import open_model
from mim_lightning.inference.quantization import base_of
from mim_lightning.inference.query_product_fusion import (
    count_rows,
    first_fields,
    fuse_rows,
    kinds_of,
    rows_by_tower,
    text_tower,
    towers_of,
    weights_of,
)
from mim_lightning.inference.tower_encoder import TowerEncoder
from mim_lightning.types import FieldInput, ImageSpec, InputSpec, TowerSpec, fields_of

BATCH_SIZE = 32


@dataclass(frozen=True)
class LoadedModel:
    """A model that embeds pictures, texts, and both together.

    Every method returns (n, D) float32 rows of unit length, in the order given, the same for the same call.
    `batch_size` says how many inputs are encoded at once, and changes nothing but rounding.
    """

    fingerprint: str  # of rounded weights: that of the float32 model, a plus sign, the precision
    dimension: int
    fusions: dict[str, dict[str, float]]  # fusion -> tower -> weight
    config: dict[str, Any]  # of the run, resolved
    device: torch.device
    precision: str
    encoders: Mapping[str, TowerEncoder] = field(repr=False)  # by tower
    _tokenising: Lock = field(default_factory=Lock, repr=False, compare=False)

    @property
    def tower_names(self) -> tuple[str, ...]:
        return tuple(self.encoders)

    @property
    def base_fingerprint(self) -> str:
        """That of the float32 model; how far a rounded one is from it stands in an export's card."""
        return base_of(self.fingerprint)

    def embed_images(
        self, images: Sequence[ImageInput], tower: str = QUERY_IMAGE, *, batch_size: int = BATCH_SIZE
    ) -> np.ndarray:
        """Embed pictures: encoded bytes, paths, PIL images or (H, W, 3) uint8 RGB arrays.

        Raises:
            ValueError: no such tower; something that is no image, damaged or too large, by position and path.
        """
        return self._embed_one(IMAGE, tower, _as_list("images", images), batch_size)

    def prepare_images(self, images: Sequence[ImageInput], tower: str = QUERY_IMAGE) -> Tensor:
        """Return pictures (n, 3, H, W) uint8 as `embed_prepared` takes them, errors as in `embed_images`.

        For a service: many threads decode, and one encodes what they have together.
        """
        self._check_kind(IMAGE, tower)
        rows, (spec,) = _as_list("images", images), fields_of(tower, self.encoders[tower].spec).values()
        prepared = self._prepare(spec, rows, range(len(rows)))
        assert isinstance(prepared, Tensor)
        return prepared

    def embed_prepared(self, prepared: Tensor, tower: str = QUERY_IMAGE) -> np.ndarray:
        """Embed pictures that `prepare_images` prepared."""
        return self.encoders[tower](prepared).numpy()

    def embed_texts(
        self, texts: Sequence[str], tower: str | None = None, *, batch_size: int = BATCH_SIZE
    ) -> np.ndarray:
        """Embed texts with `tower`; None: as short queries if the model knows those, else as product texts.

        Raises:
            ValueError: the model has no text tower, or not this one; something that is no text, by position.
        """
        rows = _as_list("texts", texts)
        return self._embed_one(TEXT, tower or text_tower(kinds_of(self._specs())), rows, batch_size)

    def embed_parts(
        self, images: Sequence[ImageInput], texts: Sequence[str], towers: Sequence[str | None] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embed what a query is made of, part by part: `embed_images` and `embed_texts` in one call.

        Args:
            images, texts: the parts.
            towers: of the texts; None, or none given: as `embed_texts` chooses.
        """
        embedded = np.zeros((len(texts), self.dimension), np.float32)
        for tower, rows in rows_by_tower(towers or [None] * len(texts)).items():
            embedded[rows] = self.embed_texts([texts[row] for row in rows], tower)
        return self.embed_images(images) if images else np.zeros((0, self.dimension), np.float32), embedded

    def embed_query(
        self,
        images: Sequence[ImageInput | None] = (),
        texts: Sequence[str | None] = (),
        weights: Mapping[str, float] | None = None,
        *,
        fields: Mapping[str, Sequence[str | None]] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> np.ndarray:
        """Embed queries: row i of picture i, text i, or both, fused as the model's `query` fusion does.

        Args:
            images, texts: as many of both, or none of one; None where a row lacks its part.
            weights: by tower name, instead of the fusion's own. Without a `query` fusion all weigh the same.
            fields: texts of declared fields by name, such as {"query_category": ["mugs"]}; as many.
            batch_size: inputs encoded at once.

        Raises:
            ValueError: lengths that differ, a row with nothing, a part that the model has no tower for.
        """
        return self._embed_side(QUERY, images, texts, fields or {}, weights, batch_size)

    def embed_products(
        self,
        images: Sequence[ImageInput | None] = (),
        texts: Sequence[str | None] = (),
        weights: Mapping[str, float] | None = None,
        *,
        fields: Mapping[str, Sequence[str | None]] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> np.ndarray:
        """Embed products likewise, as the model's `product` fusion does."""
        return self._embed_side(PRODUCT, images, texts, fields or {}, weights, batch_size)

    def _embed_side(
        self,
        side: str,
        images: Sequence[ImageInput | None],
        texts: Sequence[str | None],
        fields: Mapping[str, Sequence[str | None]],
        weights: Mapping[str, float] | None,
        batch_size: int,
    ) -> np.ndarray:
        given = {"images": _as_list("images", images), "texts": _as_list("texts", texts)}
        given |= {name: _as_list(name, values) for name, values in fields.items()}
        num_rows = count_rows(side, given)
        towers = towers_of(side, self.fusions, self._specs())
        first = first_fields(towers)
        weights = weights_of(side, self.fusions, list(towers), weights)
        columns: dict[str, list[Any]] = {}
        for name, values in given.items():
            kind = {"images": IMAGE, "texts": TEXT}.get(name)
            field = first.get(kind) if kind else name
            if all(value is None for value in values):
                continue
            if field is None or not any(field in parts for parts in towers.values()):
                what = f"no {kind} tower for it" if kind else f"no tower for {name}"
                raise ValueError(f"{side}: this model has {what}; it has {', '.join(self.tower_names)}")
            columns[field] = values
        vectors, present = {}, {}
        for tower, parts in towers.items():
            if not parts.keys() <= columns.keys():
                continue
            rows = [row for row in range(num_rows) if all(columns[field][row] is not None for field in parts)]
            inputs = {field: [columns[field][row] for row in rows] for field in parts}
            vectors[tower] = torch.zeros(num_rows, self.dimension)
            vectors[tower][rows] = self._embed(tower, inputs, rows, batch_size)
            present[tower] = torch.zeros(num_rows, dtype=torch.bool)
            present[tower][rows] = True
        if not num_rows:
            return np.zeros((0, self.dimension), "f4")
        lacking = [row for row in range(num_rows) if not any(rows[row] for rows in present.values())]
        if lacking:
            together = " or ".join(" with ".join(parts) for parts in towers.values())
            raise ValueError(f"{side} {lacking[0]}: this model reads {together}")
        return fuse_rows(side, vectors, present, weights).numpy()

    def _embed_one(self, kind: str, tower: str, values: list[Any], batch_size: int) -> np.ndarray:
        self._check_kind(kind, tower)
        (field,) = fields_of(tower, self.encoders[tower].spec)
        return self._embed(tower, {field: values}, range(len(values)), batch_size).numpy()

    def _embed(self, tower: str, values: Mapping[str, list[Any]], positions: Sequence[int], batch_size: int) -> Tensor:
        """Return the vectors (n, D) of n inputs by field; `positions` are their places in what the user gave."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        specs = fields_of(tower, self.encoders[tower].spec)
        vectors = [torch.empty(0, self.dimension)]
        for start in range(0, len(positions), batch_size):
            part = slice(start, start + batch_size)
            inputs = [self._prepare(spec, values[field][part], positions[part]) for field, spec in specs.items()]
            vectors.append(self.encoders[tower](inputs[0] if len(inputs) == 1 else tuple(inputs)))
        return torch.cat(vectors)

    def _check_kind(self, kind: str, tower: str) -> None:
        kinds = kinds_of(self._specs())
        if kinds.get(tower) != kind:
            fitting = [name for name, its in kinds.items() if its == kind]
            raise ValueError(f"tower '{tower}': no {kind} tower of this model; there are {fitting or 'none'}")

    def _prepare(self, spec: InputSpec, values: list[Any], positions: Sequence[int]) -> FieldInput:
        if isinstance(spec, ImageSpec):
            return prepare_images(values, spec, self.config["data"]["shards"]["max_image_side"], positions)
        for text, position in zip(values, positions, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"text {position}: give a string, not {type(text).__name__}")
        with self._tokenising:  # tokenisers of Hugging Face change their own settings at every call
            return spec.tokenise(values)

    def _specs(self) -> dict[str, TowerSpec]:
        return {name: encoder.spec for name, encoder in self.encoders.items()}


def load(path: str | Path, device: str = "auto", precision: str = "auto", runtime: str = "torch") -> LoadedModel:
    """Load a model for inference.

    Args:
        path: a checkpoint, an export folder, or `hf://<user>/<repo>[@<revision>]` for an export on the hub.
        device: "auto" takes a GPU if there is one; "cpu", "cuda", "cuda:1" ...
        precision: "auto" as the file has it, a checkpoint float32; "bfloat16", "float16" or "int8" round the weights,
            and the fingerprint says so.
        runtime: "torch", or "onnx" for the ONNX towers of an export folder, on the CPU.

    Raises:
        ValueError: nothing there, damaged or changed since it was written, or a choice that it does not allow.
    """
    opened = open_model(path, device, precision, runtime)
    return LoadedModel(**vars(opened))


def _as_list(name: str, values: Sequence[Any]) -> list[Any]:
    if isinstance(values, (str, bytes, Path)):
        raise ValueError(f"{name}: give a list, not one {type(values).__name__}")
    return list(values)
