"""Canaries: a few products as they went into the towers, with the vectors that came out.

`build_index` writes them beside the index, whoever opens it with a model encodes them again. Weights and
preprocessing stand in the fingerprint, the libraries under them do not: another decoder, resize or kernel that
changes embeddings is found here, not by shoppers.
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
from mim_lightning.inference.quantization import base_of
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import DamagedFileError, errors_as_damaged_file

NUM_CANARIES = 8
WIDER = 8  # times as many products are looked at where none of those chosen has an input
UNIT_TOLERANCE = 1e-3  # of a length
MIN_COSINE = 0.999  # between then and now
MIN_COSINE_ROUNDED = 0.9  # of a model with rounded weights: single pictures of MobileNetV2 fall to 0.95 in int8


class ProductEncoder(Protocol):
    @property
    def fingerprint(self) -> str: ...

    def embed_images(self, images: Sequence[bytes], tower: str) -> np.ndarray: ...

    def embed_texts(self, texts: Sequence[str], tower: str | None) -> np.ndarray: ...


@dataclass(frozen=True)
class Canaries:
    """Inputs of some products by tower, and their vectors (n, D) by tower."""

    inputs: dict[str, list[bytes] | list[str]]
    vectors: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        """Raise a ValueError unless they can tell anything: a comparison with nan, or of nothing, would pass."""
        if not self.vectors or self.vectors.keys() != self.inputs.keys():
            raise ValueError(f"inputs of {list(self.inputs)} and vectors of {list(self.vectors)}")
        for tower, vectors in self.vectors.items():
            if vectors.ndim != 2 or len(vectors) != len(self.inputs[tower]) or not vectors.size:
                raise ValueError(f"'{tower}': {len(self.inputs[tower])} inputs, vectors of shape {vectors.shape}")
            if vectors.dtype.kind != "f" or not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=UNIT_TOLERANCE):
                raise ValueError(f"'{tower}': vectors that are not of unit length")


def choose_canaries(catalogue: ShardSet, towers: Sequence[str]) -> dict[str, list[bytes] | list[str]]:
    """Return the inputs of products spread over the catalogue, for each product tower that they have inputs for."""
    num_read = NUM_CANARIES
    while True:
        numbers = np.unique(np.linspace(0, len(catalogue) - 1, num_read).astype(int))
        samples = catalogue.read(numbers.tolist())
        inputs = {tower: [sample.inputs[tower] for sample in samples if tower in sample.inputs] for tower in towers}
        if any(inputs.values()) or len(numbers) == len(catalogue):
            break
        num_read *= WIDER
    return {tower: values[:NUM_CANARIES] for tower, values in inputs.items() if values}  # type: ignore[misc]


def encode_canaries(encoder: ProductEncoder, inputs: Mapping[str, list[bytes] | list[str]]) -> Canaries:
    return Canaries(dict(inputs), {tower: _encode(encoder, tower, values) for tower, values in inputs.items()})


def check_canaries(encoder: ProductEncoder, canaries: Canaries) -> float:
    """Return the smallest cosine between the vectors of then and now.

    Raises:
        ValueError: it is below `MIN_COSINE`, or `MIN_COSINE_ROUNDED` where the weights are rounded; or the model gives
            vectors of another dimension, or that are not finite.
    """
    least = MIN_COSINE if encoder.fingerprint == base_of(encoder.fingerprint) else MIN_COSINE_ROUNDED
    cosines: dict[str, float] = {}
    for tower, then in canaries.vectors.items():
        now = _encode(encoder, tower, canaries.inputs[tower])
        if now.shape != then.shape:
            raise ValueError(
                f"'{tower}' encodes the index's canaries to {now.shape[1:]} numbers, the index has {then.shape[1:]}: "
                "build the index anew"
            )
        cosines[tower] = float((now * then).sum(1).min())
    for tower, cosine in cosines.items():
        if not cosine >= least:  # nan too
            raise ValueError(
                f"'{tower}' encodes the index's canaries to other vectors than when it was built (cosine {cosine:.4f}, "
                f"at least {least}); other library versions decode or compute otherwise: build the index anew"
            )
    return min(cosines.values())


def write_canaries(path: Path, canaries: Canaries) -> None:
    tensors = {f"vectors/{tower}": np.ascontiguousarray(vectors) for tower, vectors in canaries.vectors.items()}
    texts: dict[str, list[str]] = {}
    for tower, values in canaries.inputs.items():
        for number, value in enumerate(values):
            if isinstance(value, bytes):
                tensors[f"images/{tower}/{number:03d}"] = np.frombuffer(value, dtype=np.uint8)
            else:
                texts.setdefault(tower, []).append(str(value))
    with atomic_write(path) as partial:
        save_file(tensors, partial, metadata={"texts": json.dumps(texts)})


def read_canaries(path: Path) -> Canaries:
    """Read canaries.

    Raises:
        ValueError: the file is missing or damaged.
    """
    if not path.exists():
        raise DamagedFileError(path, "is missing", "build the index anew")
    with errors_as_damaged_file(path, "build the index anew"):
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
        return Canaries(inputs, vectors)
    except ValueError as error:
        raise ValueError(f"{path}: canaries that tell nothing ({error}); build the index anew") from error


def _encode(encoder: ProductEncoder, tower: str, values: list[bytes] | list[str]) -> np.ndarray:
    if isinstance(values[0], bytes):
        return encoder.embed_images([value for value in values if isinstance(value, bytes)], tower)
    return encoder.embed_texts([str(value) for value in values], tower)
