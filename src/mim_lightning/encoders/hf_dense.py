"""The linear layers that sentence-transformers puts behind the pooling of some text models, such as EmbeddingGemma."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import cached_file

from mim_lightning.encoders.hub_connection import cache_unless_connected, why_not_downloaded
from mim_lightning.encoders.interface import canonical_text, one_line

MODULES_FILE = "modules.json"  # of sentence-transformers: the parts of a model in their order
DENSE_FILE = "dense.json"  # our asset: the layers
ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU}
MAX_WIDTH, MAX_LAYERS = 16384, 8  # an untrusted file could name layers that fill the memory


def read_dense_layers(source: str, offline: bool) -> str:
    """Return the layers of a folder or hub model as the text of `DENSE_FILE`.

    Raises:
        ValueError: it has none, or one of another kind.
    """
    modules = json.loads(_find(source, MODULES_FILE, offline).read_text("utf-8"))
    folders = [str(part["path"]) for part in modules if str(part["type"]).endswith(".Dense")]
    if not folders:
        raise ValueError(f"encoder '{source}': its {MODULES_FILE} lists no dense layers; give dense=false")
    layers = []
    for folder in folders:
        facts = json.loads(_find(source, f"{folder}/config.json", offline).read_text("utf-8"))
        activation = str(facts.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
        sizes = {key: facts[key] for key in ("in_features", "out_features")}
        layers.append({"folder": folder, **sizes, "bias": facts.get("bias", True), "activation": activation})
    return canonical_text({"layers": layers})


class DenseLayers(nn.Module):
    """The layers of `DENSE_FILE`.

    Args:
        text: of that file, which may be untrusted.
        source: folder or hub model of the weights; None: they stay random.

    Raises:
        ValueError: a layer of another kind, or weights that do not fit.
    """

    def __init__(self, text: str, source: str | None) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for facts in json.loads(text)["layers"][:MAX_LAYERS]:
            sizes = facts["in_features"], facts["out_features"]
            if facts["activation"] not in ACTIVATIONS:
                raise ValueError(
                    f"{DENSE_FILE}: activation {facts['activation']!r} is none of {', '.join(ACTIVATIONS)}"
                )
            if not all(type(size) is int and 0 < size <= MAX_WIDTH for size in sizes):
                raise ValueError(f"{DENSE_FILE}: a layer of {sizes} features; a width is 1 to {MAX_WIDTH}")
            linear = nn.Linear(*sizes, bias=bool(facts["bias"]))
            if source is not None:
                linear.load_state_dict(_read_weights(source, facts["folder"]))
            parts += [linear, ACTIVATIONS[facts["activation"]]()]
        self.layers = nn.Sequential(*parts)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)

    def pairs(self) -> tuple[tuple[nn.Linear, nn.Module], ...]:
        """Return the layers, each with its activation."""
        return tuple(zip(self.layers[::2], self.layers[1::2], strict=True))  # type: ignore[arg-type]


def _read_weights(source: str, folder: str) -> dict[str, Tensor]:
    try:
        weights: dict[str, Any] = load_file(_find(source, f"{folder}/model.safetensors", offline=False))
    except Exception as error:  # safetensors and the hub's client raise their own
        raise ValueError(f"encoder '{source}': weights of {folder} cannot be read ({one_line(error)})") from error
    return {name.removeprefix("linear."): tensor.to(torch.float32) for name, tensor in weights.items()}


def _find(source: str, file: str, offline: bool) -> Path:
    """Return the path of a file in a folder or in a hub repository."""
    if Path(source).is_dir():
        path = Path(source) / file
        if not path.is_file():
            raise ValueError(f"encoder '{source}': has no {file}; give dense=false")
        return path
    try:
        with cache_unless_connected(source, offline):
            return Path(str(cached_file(source, file, local_files_only=offline)))
    except Exception as error:  # the hub's client raises a dozen kinds
        reason = f"{file} cannot be downloaded ({why_not_downloaded()})"
        raise ValueError(f"encoder '{source}': {reason}; give dense=false or a folder") from error
