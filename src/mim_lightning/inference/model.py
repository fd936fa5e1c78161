"""The trained model outside training: pictures and words in, unit vectors out.

`load` makes one from a checkpoint, an export folder or the hub; notebooks, the search service and whatever embeds a
catalogue hold it. It keeps no state between calls, so that threads may share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim_lightning.fields import QUERY_IMAGE
from mim_lightning.inference.image_inputs import ImageInput, prepare_images
from mim_lightning.inference.loading import open_model
from mim_lightning.inference.quantization import base_of
from mim_lightning.inference.query_product_fusion import (
    IMAGE,
    TEXT,
    count_rows,
    fuse_rows,
    kind_of,
    text_tower,
    towers_of,
    weights_of,
)
from mim_lightning.inference.tower_encoder import TowerEncoder
from mim_lightning.types import TowerInput

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
        rows = _as_list("images", images)
        return self._embed(IMAGE, tower, rows, range(len(rows)), batch_size).numpy()

    def prepare_images(self, images: Sequence[ImageInput], tower: str = QUERY_IMAGE) -> Tensor:
        """Return pictures (n, 3, H, W) uint8 as `embed_prepared` takes them, errors as in `embed_images`.

        For a service: many threads decode, and one encodes what they have together.
        """
        self._check_kind(IMAGE, tower)
        rows = _as_list("images", images)
        return self._prepare_images(tower, rows, range(len(rows)))

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
        return self._embed(TEXT, tower or text_tower(self._kinds()), rows, range(len(rows)), batch_size).numpy()

    def embed_parts(self, images: Sequence[ImageInput], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embed what a query is made of, part by part: `embed_images` and `embed_texts` in one call."""
        none = np.zeros((0, self.dimension), np.float32)
        return self.embed_images(images) if images else none, self.embed_texts(texts) if texts else none

    def embed_query(
        self,
        images: Sequence[ImageInput | None] = (),
        texts: Sequence[str | None] = (),
        weights: Mapping[str, float] | None = None,
        *,
        batch_size: int = BATCH_SIZE,
    ) -> np.ndarray:
        """Embed queries: row i of picture i, text i, or both, fused as the model's `query` fusion does.

        Args:
            images, texts: as many of both, or none of one; None where a row lacks its part.
            weights: by tower name, instead of the fusion's own. Without a `query` fusion all weigh the same.
            batch_size: inputs encoded at once.

        Raises:
            ValueError: lengths that differ, a row with nothing, a part that the model has no tower for.
        """
        return self._embed_side("query", _as_list("images", images), _as_list("texts", texts), weights, batch_size)

    def embed_products(
        self,
        images: Sequence[ImageInput | None] = (),
        texts: Sequence[str | None] = (),
        weights: Mapping[str, float] | None = None,
        *,
        batch_size: int = BATCH_SIZE,
    ) -> np.ndarray:
        """Embed products likewise, as the model's `product` fusion does."""
        return self._embed_side("product", _as_list("images", images), _as_list("texts", texts), weights, batch_size)

    def _embed_side(
        self, side: str, images: list[Any], texts: list[Any], weights: Mapping[str, float] | None, batch_size: int
    ) -> np.ndarray:
        num_rows = count_rows(side, images, texts)
        towers = towers_of(side, self.fusions, self._kinds())
        weights = weights_of(side, self.fusions, towers, weights)
        vectors, present = {}, {}
        for kind, values in ((IMAGE, images), (TEXT, texts)):
            rows = [row for row, value in enumerate(values) if value is not None]
            if not rows:
                continue
            if kind not in towers:
                raise ValueError(f"{side}: this model has no {kind} tower for it; it has {', '.join(self.tower_names)}")
            vectors[towers[kind]] = torch.zeros(num_rows, self.dimension)
            vectors[towers[kind]][rows] = self._embed(kind, towers[kind], [values[r] for r in rows], rows, batch_size)
            present[towers[kind]] = torch.zeros(num_rows, dtype=torch.bool).index_fill_(0, torch.tensor(rows), True)
        return fuse_rows(side, vectors, present, weights).numpy() if num_rows else np.zeros((0, self.dimension), "f4")

    def _embed(self, kind: str, tower: str, values: list[Any], positions: Sequence[int], batch_size: int) -> Tensor:
        """Return the vectors (n, D) of n images or texts; `positions` are their places in what the user gave."""
        self._check_kind(kind, tower)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        prepare: Callable[..., TowerInput] = self._prepare_images if kind == IMAGE else self._tokenise
        parts = [slice(start, start + batch_size) for start in range(0, len(values), batch_size)]
        vectors = [self.encoders[tower](prepare(tower, values[part], positions[part])) for part in parts]
        return torch.cat([torch.empty(0, self.dimension), *vectors])

    def _check_kind(self, kind: str, tower: str) -> None:
        if self._kinds().get(tower) != kind:
            fitting = [name for name, its in self._kinds().items() if its == kind]
            raise ValueError(f"tower '{tower}': no {kind} tower of this model; there are {fitting or 'none'}")

    def _prepare_images(self, tower: str, images: list[Any], positions: Sequence[int]) -> Tensor:
        spec: Any = self.encoders[tower].spec
        return prepare_images(images, spec, self.config["data"]["shards"]["max_image_side"], positions)

    def _tokenise(self, tower: str, texts: list[Any], positions: Sequence[int]) -> TowerInput:
        for text, position in zip(texts, positions, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"text {position}: give a string, not {type(text).__name__}")
        spec: Any = self.encoders[tower].spec
        with self._tokenising:  # tokenisers of Hugging Face change their own settings at every call
            return spec.tokenise(texts)

    def _kinds(self) -> dict[str, str]:
        return {name: kind_of(encoder.spec) for name, encoder in self.encoders.items()}


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
