"""Text encoders of Hugging Face transformers: token tensors in, one pooled vector per text out.

The tokenizer comes from the same source as the weights. With the model's config it is part of the checkpoint's assets,
so the encoder needs neither hub nor folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel

from mim_lightning.encoders.hf_dense import DENSE_FILE, DenseLayers, read_dense_layers
from mim_lightning.encoders.hf_files import (
    TOKENIZER_FILE,
    VERSION,
    VERSION_FILE,
    CodeInModelError,
    checkpoint_hf_network,
    load_hf_assets,
    load_hf_config,
    load_hf_network,
    load_hf_tokenizer,
    locate_package,
    not_found,
    read_as_text,
    undecayed_names,
    unusual_settings,
    without_volatile,
)
from mim_lightning.encoders.interface import (
    TOKENIZER_CONFIG_FILE,
    Encoder,
    HfForm,
    Pretrained,
    canonical_text,
    one_line,
    validate_prompts,
)
from mim_lightning.encoders.length_buckets import encode_by_length
from mim_lightning.types import TextSpec, TowerInput

# DataLoader workers tokenize: the tokenizer's own threads would compete with them, and do not survive a fork
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

POOLINGS = ("mean", "cls", "pooler", "last", "projection")
# model types that were trained on texts padded to one length, without a mask
UNMASKED = ("siglip_text_model", "siglip2_text_model")
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class HfTokenize:
    """Texts to padded token tensors (n, L) by name, L the longest text or always `max_length`; picklable."""

    tokenizer: Any
    max_length: int
    padding: str = "longest"  # or "max_length"

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self._tokens(list(texts))
        is_blank = _num_words(tokens) == 0
        if is_blank.any():  # not even tokens for start and end: nothing to embed
            mark = _end_mark(self.tokenizer) or ""
            tokens = self._tokens([mark if b else text for b, text in zip(is_blank.tolist(), texts, strict=True)])
        return tokens

    def _tokens(self, texts: list[str]) -> dict[str, Tensor]:
        return dict(
            self.tokenizer(
                texts, padding=self.padding, truncation=True, max_length=self.max_length, return_tensors="pt"
            )
        )

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text before truncation, start and end tokens included."""
        return [len(ids) for ids in self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]


class HfText(Encoder):
    """Any text encoder of transformers; of a CLIP-like pair, its text half.

    Args:
        name: hub name, local folder, or `package:<package>/<folder>` for a folder in an installed package.
        pretrained: True for the weights at `name`, None or False for random ones, a string for another
            such name as the source of weights, config and tokenizer.
        max_length: tokens kept of a text; None: as many as the model can take.
        pooling: "mean" under the attention mask, "cls" (first token), "last" (last token of the text, as of decoders),
            "pooler" (the model's own head) or "projection" (of a CLIP-like pair: its joint embedding).
        dense: whether the linear layers follow that sentence-transformers puts behind the pooling (`modules.json`).
        prompts: by side, "query" and "product": begins every text of a tower of that side, as in the vendor's training.
        length_buckets: groups of texts of similar length that are encoded one after another; 1: all together.
        assets: what `export_assets` of the original returned.

    Raises:
        ValueError: nothing at `name`, an unsuitable kind of model or pooling, or `max_length` too large.
    """

    spec: TextSpec

    def __init__(
        self,
        name: str,
        pretrained: Pretrained = True,
        max_length: int | None = None,
        pooling: str = "mean",
        dense: bool = False,
        prompts: Mapping[str, str] | None = None,
        length_buckets: int = 1,
        assets: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.prompts = validate_prompts(name, prompts)
        if pooling not in POOLINGS:
            raise ValueError(f"encoder '{name}': pooling '{pooling}' is none of {', '.join(POOLINGS)}")
        if type(length_buckets) is not int or length_buckets < 1:
            raise ValueError(f"encoder '{name}': length_buckets {length_buckets}: give a whole number, 1 or more")
        source = pretrained if isinstance(pretrained, str) else name
        if pretrained or assets is None:
            source = locate_package(source)
        self.pooling, self.length_buckets = pooling, length_buckets
        self.assets = dict(assets) if assets is not None else _read_assets(source, not pretrained, pooling, dense)
        # a new encoder reads config and tokenizer from the assets too, so a rebuilt one is the same
        config, tokenizer = _load_assets(name, self.assets)
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(f"encoder '{name}': has a decoder ({config.model_type}); give an encoder-only model")
        make = _class_of(name, config, pooling)
        unused = () if pooling == "pooler" else ("pooler",)
        self.network = (
            load_hf_network(make or AutoModel, source, config, unused) if pretrained else _new_network(config, make)
        )
        self.network.config.use_cache = False  # of decoders: keys and values for a next token
        if pooling != "pooler" and getattr(self.network, "pooler", None) is not None:
            self.network.pooler = None  # never gets a gradient, which distributed training refuses
        self.dense = DenseLayers(self.assets[DENSE_FILE], source if pretrained else None) if dense else None
        length = _limit(name, config, tokenizer, self.network, max_length, is_rebuilt=assets is not None)
        padding = "longest"
        self._use(HfTokenize(tokenizer, length, padding))
        try:
            self.width = self._measure_width(name)
            if self._depends_on_padding():
                padding = "max_length"
                self._use(HfTokenize(tokenizer, length, padding))
        except (TypeError, KeyError, AttributeError, IndexError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ValueError(f"encoder '{name}': a {config.model_type} cannot embed a text ({reason})") from error
        self.is_version_1 = assets is not None and VERSION_FILE not in assets
        if self.is_version_1:
            _warn_of_padding(name, self.assets)
        else:
            self.assets[VERSION_FILE] = canonical_text({"version": VERSION})
        self.description = self._describe(tokenizer, padding, _limit_of_version_1(config, tokenizer, max_length))

    def _use(self, tokenize: HfTokenize) -> None:
        self.spec = TextSpec(tokenize, tokenize.max_length, tokenize.count)
        self._pads_to_longest = tokenize.padding == "longest" and "attention_mask" in tokenize(["a"])

    def forward(self, inputs: TowerInput) -> Tensor:
        assert isinstance(inputs, dict), "text encoders take token tensors"
        # compiled or exported, the number of texts in a bucket cannot depend on them
        if self.length_buckets == 1 or not self._pads_to_longest or torch.compiler.is_compiling():
            return self._encode(inputs)
        return encode_by_length(self._encode, inputs, self.length_buckets)

    def _encode(self, inputs: Mapping[str, Tensor]) -> Tensor:
        features = self._pool(self.network(**inputs), inputs.get("attention_mask"))
        return features if self.dense is None else self.dense(features)

    def _pool(self, output: Any, mask: Tensor | None) -> Tensor:
        if self.pooling == "projection":
            return output.text_embeds
        if self.pooling == "pooler":
            return output.pooler_output
        hidden = output.last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "last":
            return hidden[:, -1] if mask is None else hidden[torch.arange(len(hidden)), last_positions(mask)]
        if mask is None:  # a model trained to read its padding, of fixed length
            return hidden.mean(1)
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)

    def checkpoint_activations(self) -> None:
        checkpoint_hf_network(self.network)

    def names_without_decay(self) -> set[str]:
        return undecayed_names(self)

    def describe_preprocessing(self) -> str:
        return self.description

    def export_assets(self) -> dict[str, str]:
        return dict(self.assets)

    def write_hf(self, folder: Path) -> HfForm:
        _as_auto_model(self.network).save_pretrained(folder)
        tokenize = self.spec.tokenize
        assert isinstance(tokenize, HfTokenize)
        tokenizer = deepcopy(tokenize.tokenizer)
        tokenizer.model_max_length = tokenize.max_length  # where texts are cut
        tokenizer.save_pretrained(folder)
        is_fixed = tokenize.padding == "max_length"
        processing = {"padding": "max_length", "max_length": tokenize.max_length} if is_fixed else {}
        if self.pooling == "projection":
            linear = self.network.text_projection
            return HfForm("text", "pooler_output", linear.in_features, None, ((linear, nn.Identity()),), processing)
        output, pooling = ("pooler_output", None) if self.pooling == "pooler" else ("last_hidden_state", self.pooling)
        layers = () if self.dense is None else self.dense.pairs()
        width = layers[0][0].in_features if layers else self.width
        return HfForm("text", output, width, pooling, layers, processing)

    @torch.no_grad()
    def _measure_width(self, name: str) -> int:
        was_training = self.training
        self.eval()
        if (
            self.pooling == "pooler"
            and getattr(self.network(**self.spec.tokenize(["a"])), "pooler_output", None) is None
        ):
            raise ValueError(f"encoder '{name}': has no pooler; give pooling=mean or pooling=cls")
        features = self(self.spec.tokenize(["a"]))
        self.train(was_training)
        return features.shape[-1]

    @torch.no_grad()
    def _depends_on_padding(self) -> bool:
        """Return whether the features of a text depend on its padding: SigLIP pools the last position."""
        was_training = self.training
        alone, beside = (self.eval()(self.spec.tokenize(texts))[0] for texts in (["a"], ["a", "a a a a a a"]))
        self.train(was_training)
        return not torch.allclose(alone, beside, rtol=1e-3, atol=1e-3 * float(alone.abs().max()))

    def _describe(self, tokenizer: Any, padding: str, limit_of_version_1: int) -> str:
        config = without_volatile(json.loads(self.assets[CONFIG_FILE]))
        digest = hashlib.sha256(self.assets.get(TOKENIZER_FILE, "").encode()).hexdigest()
        facts = {"config": config, "tokenizer": digest, "pooling": self.pooling}
        if self.dense is not None:
            facts["dense"] = self.assets[DENSE_FILE]
        if self.is_version_1:
            return canonical_text({**facts, "max_length": limit_of_version_1})
        files = {
            file: text for file, text in self.assets.items() if file not in (CONFIG_FILE, VERSION_FILE, DENSE_FILE)
        }
        settings = unusual_settings(tokenizer, files)
        if padding != "longest":
            settings["padding"] = [padding, tokenizer.pad_token_id]
        # usual settings are left out: most models keep the description of version 1
        return canonical_text(
            {**facts, "max_length": self.spec.max_length} | ({"settings": settings} if settings else {})
        )


def last_positions(mask: Tensor) -> Tensor:
    """Return the position (n,) of the last token of each row of a mask (n, L), whichever side was padded."""
    return mask.shape[1] - 1 - mask.flip(1).argmax(1)


def _warn_of_padding(name: str, assets: Mapping[str, str]) -> None:
    if json.loads(assets.get(TOKENIZER_CONFIG_FILE, "{}")).get("padding_side") == "left":
        warnings.warn(
            f"encoder '{name}': the file is from a version that padded on the left, where features depended on the "
            "other texts of a batch; rebuild the indexes of this model",
            stacklevel=2,
        )


def _num_words(tokens: Mapping[str, Tensor]) -> Tensor:
    """Return the number of tokens of each text without padding, as far as the tokenizer says."""
    if "attention_mask" in tokens:
        return tokens["attention_mask"].sum(1)
    return torch.full((len(tokens["input_ids"]),), tokens["input_ids"].shape[1])


def _end_mark(tokenizer: Any) -> str | None:
    """Return the token that represents a text without words, if there is one."""
    marks = ("bos_token", "cls_token", "eos_token", "sep_token", "unk_token", "pad_token")
    return next((mark for mark in (getattr(tokenizer, name, None) for name in marks) if mark is not None), None)


def _read_assets(source: str, offline: bool, pooling: str, dense: bool) -> dict[str, str]:
    """Return config and tokenizer of a folder or hub model as text files, from which they are rebuilt."""
    try:
        whole = load_hf_config(source, offline)
        config = getattr(whole, "text_config", whole)
        options = {"model_input_names": ["input_ids"]} if config.model_type in UNMASKED else {}
        tokenizer = load_hf_tokenizer(source, offline, **options)
    except CodeInModelError:
        raise
    except Exception as error:  # each tokenizer and the hub's client raise their own
        raise not_found(source, offline, error) from error
    if pooling == "projection" and config is not whole and hasattr(whole, "projection_dim"):
        config.projection_dim = whole.projection_dim  # that of the pair, which need not be in its text half
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        files = read_as_text(folder)
    return files | ({DENSE_FILE: read_dense_layers(source, offline)} if dense else {})


def _load_assets(name: str, assets: Mapping[str, str]) -> tuple[Any, Any]:
    config, tokenizer = load_hf_assets(name, assets)
    # whatever it was saved with: models that number positions from the left, and pooling of the first token, need texts
    # to begin there; masked padding behind a text changes nothing
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = _end_mark(tokenizer)  # masked as well
    if tokenizer.pad_token is None:
        raise ValueError(f"encoder '{name}': its tokenizer has no token to pad short texts with; give it a pad_token")
    return config, tokenizer


def _class_of(name: str, config: Any, pooling: str) -> Any:
    """Return the class of a model: AutoModel's, that of a text half which AutoModel does not know, or with projection.

    Raises:
        ValueError: no projection in this kind of model.
    """
    kind = type(config).__name__.removesuffix("Config") + "Model"
    if pooling == "projection":
        found = getattr(transformers, f"{kind}WithProjection", None)
        if found is None:
            raise ValueError(f"encoder '{name}': a {config.model_type} has no projection; give another pooling")
        return found
    is_half = kind.endswith("TextModel") and type(config) not in transformers.MODEL_MAPPING
    return getattr(transformers, kind, None) if is_half else None


def _new_network(config: Any, make: Any) -> Any:
    return AutoModel.from_config(config, trust_remote_code=False) if make is None else make(config)


def _as_auto_model(network: Any) -> Any:
    """Return what AutoModel makes of a network's config, with its weights; a pooler that it has not is zero.

    Raises:
        ValueError: AutoModel makes another network.
    """
    kind = network.config.model_type
    if type(network.config) not in transformers.MODEL_MAPPING:
        raise ValueError(f"{kind} is no model of transformers' AutoModel; the text model of a CLIP or a BERT is")
    whole = AutoModel.from_config(network.config, dtype=network.dtype, trust_remote_code=False)
    wanted = whole.state_dict()
    own = network.state_dict()
    held = {key if key in wanted else key.removeprefix("text_model."): part for key, part in own.items()}
    missing = {key for key in wanted.keys() - held.keys() if "pooler" not in key.split(".")}
    if missing or held.keys() - wanted.keys() - {"text_projection.weight"}:
        raise ValueError(f"AutoModel of transformers makes another network of {kind} than its encoder has")
    whole.load_state_dict({key: held.get(key, torch.zeros_like(part)) for key, part in wanted.items()})
    return whole


def _limit(name: str, config: Any, tokenizer: Any, network: nn.Module, max_length: int | None, is_rebuilt: bool) -> int:
    """Return the number of tokens kept of a text, within what model and tokenizer can take."""
    longest = min([_limit_of_version_1(config, tokenizer, None), *_numbered_places(network)])
    if max_length is not None and max_length > longest and not is_rebuilt:
        raise ValueError(f"encoder '{name}': max_length {max_length} is more than the {longest} tokens it can take")
    return min(max_length or longest, longest)


def _limit_of_version_1(config: Any, tokenizer: Any, max_length: int | None) -> int:
    places = getattr(config, "max_position_embeddings", None) or 512
    return max_length or min(tokenizer.model_max_length, places if places > 0 else 512)


def _numbered_places(network: nn.Module) -> list[int]:
    """Return the number of tokens that each position table holds.

    RoBERTa and its descendants number positions from behind the row of the padding.
    """
    tables = [part for name, part in network.named_modules() if "position" in name.rpartition(".")[2]]
    return [
        part.weight.shape[0] - part.padding_idx - 1
        for part in tables
        if isinstance(getattr(part, "padding_idx", None), int) and hasattr(part, "weight")
    ]
