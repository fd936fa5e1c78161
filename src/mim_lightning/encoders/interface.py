"""The one interface that every encoder fills: tower input in, (n, width) features out.

`model` builds towers on it and writes `export_assets` into checkpoints; `data` reads `spec` to prepare
input; the fingerprint reads `describe_preprocessing`. Adapters of one vendor each stand beside this file.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim_lightning.encoders.tokenizer_settings import TOKENIZER_CONFIG_FILE, without_places
from mim_lightning.io.file_name import validate_file_name
from mim_lightning.types import ImageSpec, InputSpec, TowerInput

Pretrained = bool | str | None
"""Where weights come from: None or False random, True the vendor's own, a string a file, folder or hub name."""

PREPROCESSING_FILE = "preprocessing.json"
MAX_SIDE = 4096  # pixels that an encoder may ask for: a file could name a size that fills the memory


class Encoder(nn.Module, ABC):
    """Turns one kind of input into feature vectors, not yet of unit length.

    Attributes:
        width: features that `forward` returns for each input.
        spec: what `data` has to hand over; a tuple for an encoder that reads several fields together, whose inputs
            come as a tuple in the same order (the config of its tower names them: `fields: [query_image, query_text]`).
    """

    width: int
    spec: InputSpec | tuple[InputSpec, ...]

    @abstractmethod
    def forward(self, inputs: TowerInput) -> Tensor:
        """Return (n, width) features of uint8 images (n, 3, H, W), of the tensors of `spec.tokenise`, or of a tuple."""

    @abstractmethod
    def describe_preprocessing(self) -> str:
        """Return, in one canonical text, everything besides weights that changes the features."""

    def names_without_decay(self) -> set[str]:
        """Return the parameters that weight decay spares besides vectors and biases, as the vendor's training does."""
        return set()

    def synchronise_batch_norm(self) -> None:
        """Let batch statistics be those of all processes; called once, before training on several GPUs."""
        for name, child in list(self.named_children()):
            setattr(self, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))

    def export_assets(self) -> dict[str, str]:
        """Return the text files, by name, with which `assets=` rebuilds this encoder without a network."""
        return {}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network: shape first, then (value / 255 - mean) / std by channel."""

    spec: ImageSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in self.spec.size):
            raise ValueError(f"images of {' x '.join(map(str, self.spec.size))}: a side has 1 to {MAX_SIDE} pixels")

    def to_json(self) -> str:
        facts = asdict(self)
        if self.spec.fill == (0, 0, 0):
            del facts["spec"]["fill"]  # as before there was one: fingerprints hold this text
        return canonical_text(facts)

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        facts = json.loads(text)
        spec: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in facts["spec"].items()
        }
        return cls(ImageSpec(**spec), tuple(facts["mean"]), tuple(facts["std"]))


class ImageEncoder(Encoder):
    """An encoder of uint8 RGB images that normalises on its own device."""

    spec: ImageSpec
    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.spec = preprocessing.spec
        # Not persistent: the assets carry them, so a state dict holds learned tensors only.
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1) * 255, persistent=False)

    def normalise(self, images: TowerInput) -> Tensor:
        """Return uint8 images (n, 3, H, W) as floats of the buffers' type."""
        assert isinstance(images, Tensor) and images.dtype == torch.uint8, "image encoders take uint8 images"
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def describe_preprocessing(self) -> str:
        return self.preprocessing.to_json()

    def export_assets(self) -> dict[str, str]:
        return {PREPROCESSING_FILE: self.preprocessing.to_json()}


def write_assets(assets: Mapping[str, str], folder: str | Path) -> None:
    """Write assets as files for a vendor to read.

    Raises:
        ValueError: a name that is no plain file name: they may come from a stranger's file.
    """
    for name, text in assets.items():
        content = without_places(text) if name == TOKENIZER_CONFIG_FILE else text
        (Path(folder) / validate_file_name(name, "assets of an encoder")).write_text(content, "utf-8")


def canonical_text(facts: Mapping[str, Any]) -> str:
    """Return facts as JSON that does not depend on their order."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def names_by_pattern(network: nn.Module, patterns: Iterable[str]) -> set[str]:
    """Return the parameters whose names fit one of a vendor's patterns, such as "pos_embed" or "pos_embed.*"."""
    patterns = tuple(patterns)
    return {name for name, _ in network.named_parameters() if any(fnmatchcase(name, p) for p in patterns)}


def one_line(error: Exception) -> str:
    """Return a vendor's message, which may have many lines, as the beginning of one."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def nearest_interpolation(name: str) -> str:
    """Return which of the two interpolations of `ImageSpec` stands for a vendor's name."""
    return "bilinear" if "bilinear" in name or "nearest" in name else "bicubic"


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> ValueError:
    """Return the error for a name that a vendor does not know, with the names that come closest."""
    close = get_close_matches(name, list(choices), n=4, cutoff=0.5)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return ValueError(f"encoder '{name}': no such {kind}{hint}")
