"""The trained model outside training: images and texts in, unit-length vectors out.

`mim_lightning.load` returns one; use it in notebooks, in a service, or to embed a catalog. A photo becomes a vector by
`image_inputs` (limits, decoding), `data.images.transforms` (uint8 pixels) and `model.tower` (encoder, projection).
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

from mim_lightning.fields import IMAGE, PRODUCT, QUERY, QUERY_IMAGE, QUERY_TEXT, TEXT
from mim_lightning.inference.image_inputs import ImageInput, prepare_images
from mim_lightning.inference.quantization import base_fingerprint
from mim_lightning.inference.query_product_fusion import (
    count_rows,
    fuse_rows,
    group_rows,
    main_fields,
    side_fusion,
    side_towers,
    text_tower,
    tower_modalities,
    tower_of,
)
from mim_lightning.inference.tower_encoder import TowerEncoder
from mim_lightning.model.compatibility import Galleries
from mim_lightning.model.fusion import Fusion
from mim_lightning.types import AnyOf, FieldInput, ImageSpec, InputSpec, TextSpec, TowerSpec, fields_of

BATCH_SIZE = 32


@dataclass(frozen=True)
class LoadedModel:
    """A model that embeds images, texts, and several inputs together.

    Every method returns (n, D) float32 rows of unit length, in the order given, the same for the same call. The model
    keeps no state between calls, so threads may share it. `batch_size` says how many inputs are encoded at once, and
    changes nothing but rounding.
    """

    fingerprint: str  # of rounded weights: that of the float32 model, a plus sign, the precision
    dimension: int
    fusions: dict[str, Fusion]
    config: dict[str, Any]  # of the run, resolved
    device: torch.device
    precision: str
    encoders: Mapping[str, TowerEncoder] = field(repr=False)  # by tower
    galleries: Galleries = field(default_factory=dict, repr=False)  # of former models, by fingerprint
    _tokenizer_lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    @property
    def tower_names(self) -> tuple[str, ...]:
        return tuple(self.encoders)

    @property
    def base_fingerprint(self) -> str:
        """That of the float32 model; an export's card says how far a rounded one is from it."""
        return base_fingerprint(self.fingerprint)

    def embed_images(
        self, images: Sequence[ImageInput], tower: str = QUERY_IMAGE, *, batch_size: int = BATCH_SIZE
    ) -> np.ndarray:
        """Embed images: encoded bytes, paths, PIL images or (H, W, 3) uint8 RGB arrays.

        Raises:
            ValueError: no such tower; something that is no image, damaged or too large, by position and path.
        """
        return self._embed_one(IMAGE, tower, _to_list("images", images), batch_size)

    def prepare_images(self, images: Sequence[ImageInput], tower: str = QUERY_IMAGE) -> Tensor:
        """Return images (n, 3, H, W) uint8 as `embed_prepared` takes them, errors as in `embed_images`.

        For a service: many threads decode, and one encodes the images of all of them together.
        """
        self._validate_modality(IMAGE, tower)
        (owner, name), rows = self._field_of(tower), _to_list("images", images)
        prepared = self._prepare(fields_of(owner, self.encoders[owner].spec)[name], rows, range(len(rows)))
        assert isinstance(prepared, Tensor)
        return prepared

    def embed_prepared(
        self, prepared: Tensor, tower: str = QUERY_IMAGE, texts: Sequence[str | None] | None = None
    ) -> np.ndarray:
        """Embed images from `prepare_images`; with texts, each together with its own, by a tower that reads both."""
        owner, field = self._field_of(tower)
        spec = self.encoders[owner].spec
        if not isinstance(spec, AnyOf):
            return self.encoders[owner](prepared).numpy()
        none: list[str | None] = [None] * len(prepared)
        columns = {name: list(texts or none) if isinstance(part, TextSpec) else none for name, part in spec.items()}
        inputs = [self._prepare_any(part, columns[name], range(len(prepared))) for name, part in spec.items()]
        inputs[[*spec].index(field)] = prepared
        present = [[name == field or value is not None for value in values] for name, values in columns.items()]
        return self.encoders[owner]((*inputs, torch.tensor(present).T)).numpy()

    def embed_texts(
        self, texts: Sequence[str], tower: str | None = None, *, batch_size: int = BATCH_SIZE
    ) -> np.ndarray:
        """Embed texts with `tower`; None: the tower of short queries if the model has one, else that of product texts.

        Raises:
            ValueError: the model has no text tower, or not this one; something that is no text, by position.
        """
        rows = _to_list("texts", texts)
        return self._embed_one(TEXT, tower or text_tower(tower_modalities(self._specs())), rows, batch_size)

    @property
    def reads_together(self) -> bool:
        """Whether a tower reads image and text of a query together."""
        spec = self.encoders[QUERY].spec if QUERY in self.encoders else None
        return isinstance(spec, AnyOf) and {QUERY_IMAGE, QUERY_TEXT} <= spec.keys()

    def embed_parts(
        self,
        images: Sequence[ImageInput],
        texts: Sequence[str],
        towers: Sequence[str | None] = (),
        image_text: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embed the parts of a query one by one: `embed_images` and `embed_texts` in one call.

        Args:
            images, texts: the parts.
            towers: one for each text; None, or none given: as `embed_texts` chooses.
            image_text: a text that is embedded together with each image, see `reads_together`.
        """
        images_ND, texts_MD = (np.zeros((len(values), self.dimension), np.float32) for values in (images, texts))
        for tower, rows in group_rows(towers or [None] * len(texts)).items():
            texts_MD[rows] = self.embed_texts([texts[row] for row in rows], tower)
        if image_text is not None:
            return self.embed_query(images, [image_text] * len(images)), texts_MD
        return self.embed_images(images) if images else images_ND, texts_MD

    def embed_query(
        self,
        images: Sequence[ImageInput | None] = (),
        texts: Sequence[str | None] = (),
        weights: Mapping[str, float] | None = None,
        *,
        fields: Mapping[str, Sequence[str | None]] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> np.ndarray:
        """Embed queries: row i is made of image i, text i and field i, fused as in the model's `query` fusion.

        Args:
            images, texts: as many of both, or none of one; None where a row has none.
            weights: by tower name, instead of the fusion's own. Without a `query` fusion all weigh the same.
            fields: texts of declared fields by name, such as {"query_category": ["mugs"]}; as many.
            batch_size: inputs encoded at once.

        Raises:
            ValueError: different lengths, a row without input, an input that the model has no tower for.
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
        """Embed products likewise, fused as in the model's `product` fusion."""
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
        given = {name: _to_list(name, values) for name, values in {"images": images, "texts": texts, **fields}.items()}
        num_rows = count_rows(side, given)
        towers = side_towers(side, self.fusions, self._specs())
        fusion = side_fusion(side, self.fusions, list(towers), weights, self.dimension)
        names = main_fields(towers)
        columns: dict[str, list[Any]] = {}
        for name, values in given.items():
            modality = {"images": IMAGE, "texts": TEXT}.get(name)
            column = names.get(modality) if modality else name
            if all(value is None for value in values):
                continue
            if column is None or not any(column in parts for parts in towers.values()):
                lacking = f"no {modality} tower for it" if modality else f"no tower for {name}"
                raise ValueError(f"{side}: this model has {lacking}; it has {', '.join(self.tower_names)}")
            columns[column] = values
        vectors, present = {}, {}
        for tower, parts in towers.items():
            found = [name for name in parts if name in columns]
            suffices = any if isinstance(self.encoders[tower].spec, AnyOf) else all
            if not found or not suffices(name in columns for name in parts):
                continue
            rows = [row for row in range(num_rows) if suffices(columns[name][row] is not None for name in found)]
            inputs = {name: [columns[name][row] for row in rows] for name in found}
            vectors[tower], present[tower] = torch.zeros(num_rows, self.dimension), torch.zeros(num_rows).bool()
            vectors[tower][rows], present[tower][rows] = self._embed(tower, inputs, rows, batch_size), True
        for row in range(num_rows):
            if not any(found[row] for found in present.values()):
                choices = " or ".join(" with ".join(parts) for parts in towers.values())
                raise ValueError(f"{side} {row}: this model reads {choices}")
        return fuse_rows(side, vectors, present, fusion).numpy() if num_rows else np.zeros((0, self.dimension), "f4")

    def _embed_one(self, modality: str, tower: str, values: list[Any], batch_size: int) -> np.ndarray:
        self._validate_modality(modality, tower)
        owner, name = self._field_of(tower)
        for position, value in enumerate(values):
            if value is None:  # which a tower that reads any of several fields would take for a row without it
                raise ValueError(f"{modality} {position}: is None")
        return self._embed(owner, {name: values}, range(len(values)), batch_size).numpy()

    def _field_of(self, name: str) -> tuple[str, str]:
        """Return the tower of a name in `tower_modalities`, and the field that it reads of it."""
        owner = tower_of(name, self._specs())
        return owner, name if owner != name else next(iter(fields_of(owner, self.encoders[owner].spec)))

    def _embed(self, tower: str, values: Mapping[str, list[Any]], positions: Sequence[int], batch_size: int) -> Tensor:
        """Return the vectors (n, D) of n inputs by field; `positions` are those in the user's list.

        A tower of `AnyOf` fields takes None for an absent input.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        specs = fields_of(tower, self.encoders[tower].spec)
        vectors = [torch.empty(0, self.dimension)]
        for start in range(0, len(positions), batch_size):
            part = slice(start, start + batch_size)
            if isinstance(self.encoders[tower].spec, AnyOf):
                inputs = self._prepare_row(specs, values, part, positions[part])
            else:
                inputs = tuple(self._prepare(spec, values[name][part], positions[part]) for name, spec in specs.items())
            vectors.append(self.encoders[tower](inputs[0] if len(inputs) == 1 else inputs))
        return torch.cat(vectors)

    def _prepare_row(
        self, specs: Mapping[str, InputSpec], values: Mapping[str, list[Any]], part: slice, positions: Sequence[int]
    ) -> tuple[FieldInput, ...]:
        """Return the inputs of `AnyOf` fields, and (n, F) bool, which of them a row has."""
        none = [None] * len(positions)
        columns = [values[name][part] if name in values else none for name in specs]
        inputs = [self._prepare_any(*pair, positions) for pair in zip(specs.values(), columns, strict=True)]
        return (*inputs, torch.tensor([[value is not None for value in column] for column in columns]).T)

    def _prepare_any(self, spec: InputSpec, values: list[Any], positions: Sequence[int]) -> FieldInput:
        """Return prepared inputs, a black image or no words in place of None."""
        if isinstance(spec, TextSpec):
            return self._prepare(spec, ["" if value is None else value for value in values], positions)
        out = torch.zeros(len(values), 3, *spec.size, dtype=torch.uint8)
        found = [row for row, value in enumerate(values) if value is not None]
        if found:
            images = self._prepare(spec, [values[row] for row in found], [positions[row] for row in found])
            assert isinstance(images, Tensor)
            out[found] = images
        return out

    def _prepare(self, spec: InputSpec, values: list[Any], positions: Sequence[int]) -> FieldInput:
        if isinstance(spec, ImageSpec):
            return prepare_images(values, spec, self.config["data"]["shards"]["max_image_side"], positions)
        for text, position in zip(values, positions, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"text {position}: give a string, not {type(text).__name__}")
        with self._tokenizer_lock:  # tokenizers of Hugging Face change their own settings at every call
            return spec.tokenize(values)

    def _validate_modality(self, modality: str, tower: str) -> None:
        modalities = tower_modalities(self._specs())
        if modalities.get(tower) != modality:
            fitting = [name for name, its in modalities.items() if its == modality]
            raise ValueError(f"tower '{tower}': no {modality} tower of this model; there are {fitting or 'none'}")

    def _specs(self) -> dict[str, TowerSpec]:
        return {name: encoder.spec for name, encoder in self.encoders.items()}


def _to_list(name: str, values: Sequence[Any]) -> list[Any]:
    if isinstance(values, (str, bytes, Path)):
        raise ValueError(f"{name}: give a list, not one {type(values).__name__}")
    return list(values)
