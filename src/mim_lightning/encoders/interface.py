"""The interface of encoders: prepared inputs in, (n, width) features out.

To add one, subclass `Encoder` or `ImageEncoder` and test it with `tests/contracts/encoder.py`; a file
conf/encoder/image/<name>.yaml, text/ or image_text/ makes it an option, and the package's `__init__` and
`stored_config.ROLES` name it, or no checkpoint of it loads. `spec` says how inputs are prepared,
`describe_preprocessing` enters the fingerprint, `export_assets` goes into checkpoints.
"""

from __future__ import annotations

import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim_lightning.encoders.layers import group_by_layer
from mim_lightning.fields import SIDES
from mim_lightning.io.file_name import validate_file_name
from mim_lightning.types import ImageSpec, InputSpec, TextSpec, TowerInput

Pretrained = bool | str | None
"""Source of weights: None or False random, True the vendor's own, a string a file, folder or hub name."""

PREPROCESSING_FILE = "preprocessing.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
PATH_KEYS, PATH_SUFFIXES = ("vocab", "merges"), ("_file", "_path", "_dir")  # of its settings, that may name a file
BINARY_SUFFIX = ".base64"  # of an asset that is no text
MAX_SIDE = 4096  # pixels of an input image: an untrusted file could name a size that fills the memory


class Encoder(nn.Module, ABC):
    """Turns inputs of one kind into feature vectors, not yet of unit length.

    Attributes:
        width: number of features of an input.
        spec: how inputs are prepared; a tuple for an encoder that reads several fields together, whose inputs
            come as a tuple in the same order (the config of its tower names them: `fields: [query_image, query_text]`).
        reads_any: whether it embeds rows that have only some of the fields of `spec`. Its inputs then end with (n, F)
            bool, which of the fields a row has; what stands for an absent one is a black image, or no words.
        prompts: by side, "query" and "product": what begins every text of a tower of that side.
    """

    width: int
    spec: InputSpec | tuple[InputSpec, ...]
    reads_any: bool = False
    prompts: Mapping[str, str] = {}  # replaced, never changed

    @abstractmethod
    def forward(self, inputs: TowerInput) -> Tensor:
        """Return (n, width) features of uint8 images (n, 3, H, W), of the tensors of `spec.tokenize`, or of a tuple."""

    @abstractmethod
    def describe_preprocessing(self) -> str:
        """Return everything besides weights that changes the features, as canonical text: part of the fingerprint."""

    def prompted(self, spec: TextSpec, prompt: str) -> TextSpec:
        """Return a text spec of this encoder that begins every text with a prompt."""
        tokenize = PromptedTokenize(spec.tokenize, prompt)
        count = None if spec.count is None else PromptedTokenize(spec.count, prompt)
        return TextSpec(tokenize, spec.max_length, count)

    @torch.no_grad()
    def embed_sample(self, image_size: int | None = None) -> Tensor:
        """Return the features of one row, a gray image, a text of one letter, or both, as in evaluation.

        Args:
            image_size: of the image, in pixels of a side; None: the encoder's own.
        """
        parts = self.spec if isinstance(self.spec, tuple) else (self.spec,)
        inputs: list[Any] = []
        for spec in parts:
            if isinstance(spec, ImageSpec):
                size = spec.size if image_size is None else (image_size, image_size)
                inputs.append(torch.full((1, 3, *size), 128, dtype=torch.uint8))
            else:
                inputs.append(spec.tokenize(["a"]))
        if self.reads_any:
            inputs.append(torch.ones(1, len(parts), dtype=torch.bool))  # the row has all of them
        was_training = [(module, module.training) for module in self.modules()]
        try:
            return self.eval()(tuple(inputs) if len(inputs) > 1 else inputs[0])
        finally:
            for module, mode in was_training:
                module.training = mode

    def names_without_decay(self) -> set[str]:
        """Return the parameters without weight decay besides vectors and biases, as in the vendor's training."""
        return set()

    def layers(self) -> list[list[str]]:
        """Return the names of all parameters by layer, from input to output.

        The first group comes before the layers, the last one behind them; see `group_by_layer`, which finds them.
        """
        return group_by_layer(self)

    def checkpoint_activations(self) -> None:
        """Recompute activations in every backward pass from now on instead of keeping them.

        Raises:
            ValueError: this encoder cannot.
        """
        raise ValueError(f"encoder {type(self).__name__} keeps its activations: it has no checkpoint_activations")

    def synchronize_batch_norm(self) -> None:
        """Compute batch statistics over all processes; called once, before training on several GPUs."""
        for name, child in list(self.named_children()):
            setattr(self, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))

    def export_assets(self) -> dict[str, str]:
        """Return text files by name; `assets=` rebuilds this encoder from them without network access."""
        return {}

    def write_hf(self, folder: Path) -> HfForm:
        """Write weights, config and tokenizer or image preprocessing as `transformers` reads them, without our code.

        Raises:
            ValueError: transformers has no such network or image processor; names those that it has.
        """
        raise ValueError(f"{type(self).__name__} is no network of transformers; HfText and TimmImage are")


@dataclass(frozen=True)
class HfForm:
    """What makes an encoder's features of a network that transformers reads from a folder, see `Encoder.write_hf`."""

    modality: str  # of its inputs: "text" or "image"
    output: str  # of the network: "last_hidden_state", a vector a token, or "pooler_output", one an input
    width: int  # of these vectors
    pooling: str | None = None  # of tokens: "mean", "cls" or "last"
    layers: tuple[tuple[nn.Linear, nn.Module], ...] = ()  # behind that, each with its activation
    processing: Mapping[str, Any] = field(default_factory=dict)  # arguments of every call of the tokenizer


@dataclass(frozen=True)
class PromptedTokenize:
    """A tokenizer, or a count of tokens, of texts that begin with a prompt; picklable."""

    function: Callable[[Sequence[str]], Any]
    prompt: str

    def __call__(self, texts: Sequence[str]) -> Any:
        return self.function([self.prompt + text for text in texts])


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network: resized and cropped, then (value / 255 - mean) / std by channel."""

    spec: ImageSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in self.spec.size):
            raise ValueError(f"images of {' x '.join(map(str, self.spec.size))}: a side has 1 to {MAX_SIDE} pixels")

    def to_json(self) -> str:
        facts = asdict(self)
        if self.spec.fill == (0, 0, 0):
            del facts["spec"]["fill"]  # as before the field existed: this text is part of fingerprints
        return canonical_text(facts)

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        facts = json.loads(text)
        spec: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in facts["spec"].items()
        }
        return cls(ImageSpec(**spec), tuple(facts["mean"]), tuple(facts["std"]))


class ImageEncoder(Encoder):
    """An encoder of uint8 RGB images that normalizes on its own device."""

    spec: ImageSpec
    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.spec = preprocessing.spec
        # not persistent: they are in the assets, and a state dict has learned tensors only
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1) * 255, persistent=False)

    def normalize(self, images: TowerInput) -> Tensor:
        """Return uint8 images (n, 3, H, W) as floats of the buffers' type."""
        assert isinstance(images, Tensor) and images.dtype == torch.uint8, "image encoders take uint8 images"
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def describe_preprocessing(self) -> str:
        return self.preprocessing.to_json()

    def export_assets(self) -> dict[str, str]:
        return {PREPROCESSING_FILE: self.preprocessing.to_json()}


def write_assets(assets: Mapping[str, str], folder: str | Path) -> None:
    """Write assets as files for a vendor's library to read.

    Raises:
        ValueError: a name that is no plain file name, as in an untrusted checkpoint.
    """
    for name, text in assets.items():
        path = Path(folder) / validate_file_name(name.removesuffix(BINARY_SUFFIX), "assets of an encoder")
        if name.endswith(BINARY_SUFFIX):
            path.write_bytes(base64.b64decode(text))
        else:
            path.write_text(_without_paths(text) if name == TOKENIZER_CONFIG_FILE else text, "utf-8")


def _without_paths(text: str) -> str:
    """Return a `tokenizer_config.json` that names no files: an untrusted one could name any file of this machine."""
    facts = json.loads(text)
    texts = [key for key, value in facts.items() if isinstance(value, str)]
    named = [key for key in texts if key in PATH_KEYS or key.endswith(PATH_SUFFIXES)]
    return json.dumps({key: value for key, value in facts.items() if key not in named}) if named else text


def canonical_text(facts: Mapping[str, Any]) -> str:
    """Return facts as JSON, whatever their order."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def checkpoint_vendor(network: nn.Module) -> None:
    """Have a network of timm or OpenCLIP recompute the activations of its blocks.

    Raises:
        ValueError: it cannot.
    """
    try:
        network.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise ValueError(f"{type(network).__name__} keeps its activations ({one_line(error)})") from error


def names_by_pattern(network: nn.Module, patterns: Iterable[str]) -> set[str]:
    """Return the parameters whose names match one of the patterns, such as "pos_embed" or "pos_embed.*"."""
    patterns = tuple(patterns)
    return {name for name, _ in network.named_parameters() if any(fnmatchcase(name, p) for p in patterns)}


def one_line(error: Exception) -> str:
    """Return the first 200 characters of a vendor's message in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def nearest_interpolation(name: str) -> str:
    """Return the interpolation of `ImageSpec` that is closest to a vendor's."""
    return "bilinear" if "bilinear" in name or "nearest" in name else "bicubic"


def validate_prompts(name: str, prompts: Mapping[str, str] | None) -> dict[str, str]:
    """Return an encoder's prompts by side.

    Raises:
        ValueError: a key that is no side, or a value that is no text.
    """
    for side, prompt in (prompts or {}).items():
        if side not in SIDES or not isinstance(prompt, str):
            raise ValueError(f"encoder '{name}': prompts.{side}={prompt!r}: give a text for {' or '.join(SIDES)}")
    return dict(prompts or {})


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> ValueError:
    """Return the error for a name that a vendor does not know, with the closest known names."""
    close = get_close_matches(name, list(choices), n=4, cutoff=0.5)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return ValueError(f"encoder '{name}': no such {kind}{hint}")
