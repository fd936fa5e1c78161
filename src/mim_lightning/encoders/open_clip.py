"""Image and text encoders of OpenCLIP pairs (CLIP, SigLIP, ...): each half alone, with its own projection.

Features of the two halves of a pair share one space if both name the same model and weights. The model's config and
tokenizer are part of the checkpoint's assets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from mim_lightning.encoders.hf_files import VERSION, VERSION_FILE, load_hf_config, unusual_settings
from mim_lightning.encoders.interface import (
    TOKENIZER_CONFIG_FILE,
    Encoder,
    ImageEncoder,
    Preprocessing,
    Pretrained,
    canonical_text,
    checkpoint_vendor,
    nearest_interpolation,
    write_assets,
)
from mim_lightning.encoders.open_clip_weights import (
    CONFIG_FILE,
    FOLDER_PREFIX,
    listed_without_decay,
    load_pair,
    open_clip,
    read_config,
    read_text_assets,
    without_download,
)
from mim_lightning.types import ImageSpec, TextSpec, TowerInput


class OpenClipImage(ImageEncoder):
    """The image half of an OpenCLIP model; features are its joint embedding before normalization.

    Args:
        name: a name of `open_clip.list_models()`, `local-dir:<folder>` or `hf-hub:<owner/model>`.
        pretrained: a weights tag or a file, True for the only tag or the weights in folder or hub, None or
            False for random weights.
        image_size: side in pixels; None: the model's own. Position embeddings are resized.
        assets: what `export_assets` of the original returned.

    Raises:
        ValueError: no such model or tag, or its weights cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        pretrained: Pretrained = None,
        image_size: int | None = None,
        assets: Mapping[str, str] | None = None,
    ) -> None:
        config = read_config(name, pretrained, assets)
        if image_size is not None:
            config["model_cfg"]["vision_cfg"]["image_size"] = image_size
            config["preprocess_cfg"]["size"] = image_size
        super().__init__(_preprocessing(config))
        self.config_text = canonical_text(config)
        model = config["model_cfg"]
        if pretrained:
            self.network: Any = load_pair(name, pretrained, config, image_size).visual
        else:
            self.network = open_clip.model._build_vision_tower(
                model["embed_dim"], without_download(model)["vision_cfg"], model.get("quick_gelu", False)
            )
        self.width = model["embed_dim"]

    def forward(self, inputs: TowerInput) -> Tensor:
        return self.network(self.normalize(inputs))

    def checkpoint_activations(self) -> None:
        checkpoint_vendor(self.network)

    def names_without_decay(self) -> set[str]:
        return {f"network.{name}" for name in listed_without_decay(self.network)}

    def describe_preprocessing(self) -> str:
        return self.config_text

    def export_assets(self) -> dict[str, str]:
        return {CONFIG_FILE: self.config_text}


@dataclass(frozen=True)
class OpenClipTokenize:
    """Texts to token tensors (n, L), L always the model's context length: its pooling may depend on it."""

    tokenizer: Any

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {"input_ids": self.tokenizer(list(texts))}

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text before truncation, start and end tokens included."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is None:  # CLIP's own, which adds a start and an end
            return [len(self.tokenizer.encode(text)) + 2 for text in texts]
        cleaned = [self.tokenizer.clean_fn(text) for text in texts]
        return [len(ids) for ids in inner(cleaned, truncation=False, verbose=False)["input_ids"]]


class OpenClipText(Encoder):
    """The text half of an OpenCLIP model; features are its joint embedding before normalization.

    Args and errors as in `OpenClipImage`.
    """

    spec: TextSpec

    def __init__(self, name: str, pretrained: Pretrained = None, assets: Mapping[str, str] | None = None) -> None:
        super().__init__()
        config = read_config(name, pretrained, assets)
        self.assets = dict(assets) if assets is not None else read_text_assets(name, config, offline=not pretrained)
        model = config["model_cfg"]
        with TemporaryDirectory() as folder:
            write_assets(self.assets, folder)
            if "hf_model_name" in model["text_cfg"]:
                load_hf_config(folder, offline=True)  # before OpenCLIP reads it and asks whether to run code
            safely = {"trust_remote_code": False} if model["text_cfg"].get("hf_tokenizer_name") else {}
            tokenizer = open_clip.get_tokenizer(FOLDER_PREFIX + folder, **safely)
            if not pretrained:
                self.network = open_clip.model._build_text_tower(
                    model["embed_dim"],
                    without_download(model, folder)["text_cfg"],
                    model.get("quick_gelu", False),
                )
        if pretrained:
            self.network = load_pair(name, pretrained, config).text
        tokenize = OpenClipTokenize(tokenizer)
        # in this mode, start and end tokens differ from those of its tokenizer
        can_count = not getattr(tokenizer, "tokenizer_mode", "")
        self.spec = TextSpec(tokenize, tokenizer.context_length, tokenize.count if can_count else None)
        self.width = model["embed_dim"]
        self.settings: dict[str, Any] = {}
        if assets is None or VERSION_FILE in assets:  # else the file is of version 1, without settings
            self.assets[VERSION_FILE] = canonical_text({"version": VERSION})
            self.settings = _unusual_settings(getattr(tokenizer, "tokenizer", None), self.assets)

    def forward(self, inputs: TowerInput) -> Tensor:
        assert isinstance(inputs, dict), "text encoders take token tensors"
        return self.network(inputs["input_ids"])

    def checkpoint_activations(self) -> None:
        checkpoint_vendor(self.network)

    def names_without_decay(self) -> set[str]:
        return {f"network.{name}" for name in listed_without_decay(self.network)}

    def describe_preprocessing(self) -> str:
        # tokenizer_config.json has paths and versions; vocabulary and rules are in tokenizer.json
        files = {file: text for file, text in self.assets.items() if file not in (TOKENIZER_CONFIG_FILE, VERSION_FILE)}
        facts: dict[str, Any] = {file: hashlib.sha256(text.encode()).hexdigest() for file, text in files.items()}
        if self.settings:
            facts["settings"] = self.settings
        return canonical_text(facts)

    def export_assets(self) -> dict[str, str]:
        return dict(self.assets)


def _unusual_settings(tokenizer: Any, assets: Mapping[str, str]) -> dict[str, Any]:
    if tokenizer is None:  # CLIP's own has none
        return {}
    files = {file: text for file, text in assets.items() if file not in (CONFIG_FILE, VERSION_FILE)}
    settings = unusual_settings(tokenizer, files)
    if tokenizer.padding_side != "right":
        settings["padding_side"] = tokenizer.padding_side
    return settings


def _preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    own = config["preprocess_cfg"]
    height, width = (own["size"], own["size"]) if isinstance(own["size"], int) else own["size"]
    mode = {"squash": "squash", "longest": "border"}.get(own["resize_mode"], "shortest")
    fill = own.get("fill_color", 0) if mode == "border" else 0
    spec = ImageSpec(
        size=(height, width),
        interpolation=nearest_interpolation(own["interpolation"]),
        resize_mode=mode,
        fill=(fill,) * 3 if isinstance(fill, int) else tuple(fill),
    )
    return Preprocessing(spec, tuple(own["mean"]), tuple(own["std"]))
