"""Golden samples: inputs of a few products with the vectors that the model gave them when the index was built.

The fingerprint covers weights and preprocessing, but not the libraries below them: another decoder, resize or kernel
that changes embeddings shows here, when the index is opened with a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.inference.quantization import base_fingerprint
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import DamagedFileError, errors_as_damaged_file
from mim_lightning.search.index.card import REBUILD

NUM_SAMPLES = 8
_READ_FACTOR = 8  # more products are read if none of those chosen has an input
_UNIT_TOLERANCE = 1e-3  # of a length
MIN_COSINE = 0.999  # between the stored and the current vector
MIN_COSINE_QUANTIZED = 0.9  # of a model with quantized weights: single images of MobileNetV2 fall to 0.95 in int8
TowerInputs = list[bytes] | list[str]


class ProductEncoder(Protocol):
    @property
    def fingerprint(self) -> str: ...

    def embed_images(self, images: Sequence[bytes], tower: str) -> np.ndarray: ...

    def embed_texts(self, texts: Sequence[str], tower: str | None) -> np.ndarray: ...


@dataclass(frozen=True)
class GoldenSamples:
    """Inputs of some products by tower, and their vectors (n, D) by tower."""

    inputs: dict[str, TowerInputs]
    vectors: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        """Raise ValueError for vectors that verify nothing: a comparison with nan, or of nothing, would pass."""
        if not self.vectors or self.vectors.keys() != self.inputs.keys():
            raise ValueError(f"inputs of {list(self.inputs)} and vectors of {list(self.vectors)}")
        for tower, vectors in self.vectors.items():
            if vectors.ndim != 2 or len(vectors) != len(self.inputs[tower]) or not vectors.size:
                raise ValueError(f"'{tower}': {len(self.inputs[tower])} inputs, vectors of shape {vectors.shape}")
            if vectors.dtype.kind != "f" or not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=_UNIT_TOLERANCE):
                raise ValueError(f"'{tower}': vectors that are not of unit length")


def select_inputs(catalog: ShardSet, towers: Sequence[str]) -> dict[str, TowerInputs]:
    """Return the inputs of products spread over the catalog, for each product tower that they have inputs for."""
    num_read = NUM_SAMPLES
    while True:
        numbers = np.unique(np.linspace(0, len(catalog) - 1, num_read).astype(int))
        samples = catalog.read_few(numbers.tolist())
        inputs = {tower: [sample.inputs[tower] for sample in samples if tower in sample.inputs] for tower in towers}
        if any(inputs.values()) or len(numbers) == len(catalog):
            return {tower: values[:NUM_SAMPLES] for tower, values in inputs.items() if values}  # type: ignore[misc]
        num_read *= _READ_FACTOR


def encode_golden_samples(encoder: ProductEncoder, inputs: Mapping[str, TowerInputs]) -> GoldenSamples:
    return GoldenSamples(dict(inputs), {tower: _encode(encoder, tower, values) for tower, values in inputs.items()})


def verify_golden_samples(encoder: ProductEncoder, samples: GoldenSamples) -> float:
    """Return the smallest cosine between stored and current vectors.

    Raises:
        ValueError: it is below `MIN_COSINE`, or `MIN_COSINE_QUANTIZED` for a quantized model; or the model gives
            vectors of another dimension, or that are not finite.
    """
    is_quantized = encoder.fingerprint != base_fingerprint(encoder.fingerprint)
    minimum, cosines = MIN_COSINE_QUANTIZED if is_quantized else MIN_COSINE, []
    for tower, stored in samples.vectors.items():
        try:
            current = _encode(encoder, tower, samples.inputs[tower])
        except ValueError as error:
            raise ValueError(f"golden samples of the index, '{tower}': {error}; {REBUILD}") from error
        if current.shape != stored.shape:
            raise ValueError(
                f"'{tower}' encodes the golden samples of the index to {current.shape[1:]} numbers, the index has "
                f"{stored.shape[1:]}: {REBUILD}"
            )
        cosine = float((current * stored).sum(1).min())
        if not cosine >= minimum:  # nan too
            raise ValueError(
                f"'{tower}' encodes the golden samples of the index differently than when it was built (cosine "
                f"{cosine:.4f}, minimum {minimum}); other library versions decode or compute differently: {REBUILD}"
            )
        cosines.append(cosine)
    return min(cosines)


def write_golden_samples(path: Path, samples: GoldenSamples) -> None:
    tensors = {f"vectors/{tower}": np.ascontiguousarray(vectors) for tower, vectors in samples.vectors.items()}
    texts: dict[str, list[str]] = {}
    for tower, values in samples.inputs.items():
        for number, value in enumerate(values):
            if isinstance(value, bytes):
                tensors[f"images/{tower}/{number:03d}"] = np.frombuffer(value, dtype=np.uint8)
            else:
                texts.setdefault(tower, []).append(str(value))
    with atomic_write(path) as partial:
        save_file(tensors, partial, metadata={"texts": json.dumps(texts)})


def read_golden_samples(path: Path) -> GoldenSamples:
    """Read golden samples.

    Raises:
        ValueError: the file is missing or damaged.
    """
    if not path.exists():
        raise DamagedFileError(path, "is missing", REBUILD)
    with errors_as_damaged_file(path, REBUILD):
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            inputs: dict[str, list] = json.loads(file.metadata()["texts"])
        if not isinstance(inputs, dict) or not all(isinstance(texts, list) for texts in inputs.values()):
            raise TypeError("its texts are no lists by tower")
        for name in sorted(tensors):
            if name.startswith("images/"):
                inputs.setdefault(name.split("/")[1], []).append(tensors[name].tobytes())
    vectors = {name.removeprefix("vectors/"): part for name, part in tensors.items() if name.startswith("vectors/")}
    try:
        return GoldenSamples(inputs, vectors)
    except ValueError as error:
        raise ValueError(f"{path}: golden samples that verify nothing ({error}); {REBUILD}") from error


def _encode(encoder: ProductEncoder, tower: str, values: TowerInputs) -> np.ndarray:
    if isinstance(values[0], bytes):
        return encoder.embed_images([value for value in values if isinstance(value, bytes)], tower)
    return encoder.embed_texts([str(value) for value in values], tower)
