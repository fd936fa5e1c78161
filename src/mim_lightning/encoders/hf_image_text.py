"""Vision-language models of Hugging Face transformers as encoders of an image and a text together, such as
Qwen3-VL-Embedding: the hidden state of the last token of a chat turn that holds both, or either.

Every image has one size, so that it has one number of patches and batches stay tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from mim_lightning.encoders.hf_files import (
    TOKENIZER_FILE,
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
from mim_lightning.encoders.hub_connection import cache_unless_connected
from mim_lightning.encoders.interface import (
    PREPROCESSING_FILE,
    Encoder,
    Preprocessing,
    Pretrained,
    canonical_text,
    validate_prompts,
)
from mim_lightning.encoders.layers import group_by_layer
from mim_lightning.types import ImageSpec, InputSpec, TextSpec, TowerInput

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # model types with this chat format and these positions
CONFIG_FILE = "config.json"
UNUSED_FILES = ("chat_template.jinja", "chat_template.json")  # code of templates is not run
INSTRUCTION = "Represent the user's input."  # Qwen3-VL-Embedding's own, where a side has none
START, END, PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
BEFORE = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
RESIZE_MODES = ("border", "squash", "shortest")


@dataclass(frozen=True)
class ChatTokenize:
    """Texts to the tokens (n, L) of chat turns that hold `num_patches` marks of an image and the text; picklable.

    A text is cut to `max_length` tokens of its own; the marks of images are removed for rows without one.
    """

    tokenizer: Any
    max_length: int
    num_patches: int
    prompt: str = INSTRUCTION  # in the turn of the system

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        before = f"{BEFORE.format(self.prompt)}{START}{PAD * self.num_patches}{END}"
        turns = [f"{before}{self._cut(text)}{AFTER}" for text in texts]
        return dict(self.tokenizer(turns, padding="longest", return_tensors="pt"))

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text before it is cut."""
        return [len(self._encode(text)["input_ids"]) for text in map(self._clean, texts)]

    def _cut(self, text: str) -> str:
        text = self._clean(text)
        ends = self._encode(text)["offset_mapping"]
        return text[: ends[self.max_length - 1][1]] if len(ends) > self.max_length else text

    def _clean(self, text: str) -> str:
        """Remove what would be a mark of the turn or of an image."""
        for mark in self.tokenizer.added_tokens_encoder:
            text = text.replace(mark, " ")
        return text.strip()

    def _encode(self, text: str) -> Any:
        return self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)


class HfImageText(Encoder):
    """A Qwen-like vision-language model; features are the last token's of a turn with image, text or both.

    Args:
        name: hub name, local folder, or `package:<package>/<folder>` for a folder in an installed package.
        pretrained: True for the weights at `name`, None or False for random ones, a string for another such name as
            the source of weights, config, tokenizer and preprocessing.
        image_size: side in pixels, a multiple of a merged patch (28 or 32): more pixels, more tokens.
        max_length: tokens kept of a text.
        resize_mode: "border" keeps the shape of an image and pads it, "squash" changes it, "shortest" crops it.
        prompts: by side, "query" and "product": the instruction of a tower of that side.
        assets: what `export_assets` of the original returned.

    Raises:
        ValueError: nothing at `name`, another kind of model, or a size that it cannot take.
    """

    reads_any = True
    spec: tuple[InputSpec, ...]
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        pretrained: Pretrained = True,
        image_size: int = 256,
        max_length: int = 64,
        resize_mode: str = "border",
        prompts: Mapping[str, str] | None = None,
        assets: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.prompts = validate_prompts(name, prompts)
        if resize_mode not in RESIZE_MODES:
            raise ValueError(f"encoder '{name}': resize_mode '{resize_mode}' is none of {', '.join(RESIZE_MODES)}")
        source = pretrained if isinstance(pretrained, str) else name
        if pretrained or assets is None:
            source = locate_package(source)
        self.assets = (
            dict(assets) if assets is not None else _read_assets(source, not pretrained, image_size, resize_mode)
        )
        config, tokenizer = _load_assets(name, self.assets)
        preprocessing = Preprocessing.from_json(self.assets[PREPROCESSING_FILE])
        vision = config.vision_config
        self.patch, self.merge, self.frames = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        height, width = preprocessing.spec.size
        if height % (step := self.patch * self.merge) or width % step:
            below = max(1, height // step) * step
            raise ValueError(
                f"encoder '{name}': image_size {height} must divide by {step}; {below} or {below + step} does"
            )
        self.grid = height // step, width // step  # of merged patches, each of which is a token
        tokenize = ChatTokenize(tokenizer, max_length, self.grid[0] * self.grid[1])
        self.spec = (preprocessing.spec, TextSpec(tokenize, max_length, tokenize.count))
        for key, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(key, torch.tensor(values).view(1, -1, 1, 1) * 255, persistent=False)
        self.network = (
            load_hf_network(AutoModel, source, config)
            if pretrained
            else AutoModel.from_config(config, trust_remote_code=False)
        )
        self.width = config.text_config.hidden_size
        self.marks = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in (START, END, PAD)}
        self.pad_id = tokenizer.pad_token_id
        self.description = _describe(self.assets, tokenizer, max_length)

    def layers(self) -> list[list[str]]:
        # those of words and pictures together; the ones of pictures alone come before them
        return group_by_layer(self, "network.language_model.layers")

    def forward(self, inputs: TowerInput) -> Tensor:
        images, tokens, present = inputs
        assert isinstance(images, Tensor) and isinstance(tokens, dict) and isinstance(present, Tensor)
        has_image = present[:, 0]
        ids, kept = self._without_absent(tokens["input_ids"], tokens["attention_mask"].bool(), has_image)
        shown, is_blank = images[has_image], not bool(has_image.any())
        vision: dict[str, Tensor] = {} if is_blank else self._pixels(shown)
        hidden = self.network(
            input_ids=ids, attention_mask=kept.long(), position_ids=self._positions(ids), use_cache=False, **vision
        ).last_hidden_state
        features = hidden[torch.arange(len(hidden), device=hidden.device), kept.sum(1) - 1]
        if is_blank and torch.is_grad_enabled():
            # distributed training needs every weight in the graph, used by a row or not
            pixels = self._pixels(torch.zeros_like(images[:1]))
            unused = self.network.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"])
            features = features + 0 * sum(part.sum() for part in _tensors(unused))
        return features

    def _without_absent(self, ids_NL: Tensor, mask_NL: Tensor, has_image_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids and mask without the marks of absent images, with all padding at the end."""
        is_mark_NL = torch.isin(ids_NL, torch.tensor(list(self.marks.values()), device=ids_NL.device))
        kept_NL = mask_NL & (~is_mark_NL | has_image_N[:, None])
        order_NL = (~kept_NL).to(torch.uint8).argsort(dim=1, stable=True)
        kept_NL = kept_NL.gather(1, order_NL)
        return ids_NL.gather(1, order_NL).masked_fill(~kept_NL, self.pad_id), kept_NL

    def _positions(self, ids_NL: Tensor) -> Tensor:
        """Return the positions (3, n, L) in time, height and width: one number for text, a grid for an image.

        As `get_rope_index` of the model, for one image of a known size in a row; without its loops over rows.
        """
        rows, columns = self.grid
        is_patch_NL = ids_NL == self.marks[PAD]
        place_L = torch.arange(ids_NL.shape[1], device=ids_NL.device)
        start_N1 = is_patch_NL.to(torch.uint8).argmax(1, keepdim=True)
        patch_NL = place_L - start_N1
        is_behind_NL = is_patch_NL.any(1, keepdim=True) & (patch_NL >= rows * columns)
        text_NL = place_L - is_behind_NL * (rows * columns - max(rows, columns))
        offsets = (torch.zeros_like(patch_NL), patch_NL // columns, patch_NL % columns)
        return torch.stack([torch.where(is_patch_NL, start_N1 + offset, text_NL) for offset in offsets])

    def _pixels(self, images: Tensor) -> dict[str, Tensor]:
        """Return patches, and the number of them in each direction, as the model's own image processor."""
        assert images.dtype == torch.uint8, "image encoders take uint8 images"
        normal = (images.to(self.mean.dtype) - self.mean) / self.std
        (rows, columns), merge, patch = self.grid, self.merge, self.patch
        blocks = normal.view(len(images), 3, rows, merge, patch, columns, merge, patch).permute(0, 2, 5, 3, 6, 1, 4, 7)
        frames = blocks.unsqueeze(6).expand(*blocks.shape[:6], self.frames, patch, patch)  # an image is a still film
        grid = torch.tensor([[1, rows * merge, columns * merge]], device=images.device).expand(len(images), 3)
        return {"pixel_values": frames.flatten(5).flatten(0, 4), "image_grid_thw": grid}

    def prompted(self, spec: TextSpec, prompt: str) -> TextSpec:
        """Return a text spec with another instruction."""
        assert isinstance(spec.tokenize, ChatTokenize)
        return replace(spec, tokenize=replace(spec.tokenize, prompt=prompt))

    def checkpoint_activations(self) -> None:
        checkpoint_hf_network(self.network)

    def names_without_decay(self) -> set[str]:
        return undecayed_names(self)

    def describe_preprocessing(self) -> str:
        return self.description

    def export_assets(self) -> dict[str, str]:
        return dict(self.assets)


def _tensors(output: Any) -> list[Tensor]:
    """Return the tensors of a vision model's output, which differs between kinds and versions."""
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else [output]
    return [
        tensor for part in parts for tensor in ([part] if isinstance(part, Tensor) else _tensors(part) if part else [])
    ]


def _read_assets(source: str, offline: bool, image_size: int, resize_mode: str) -> dict[str, str]:
    """Return config, tokenizer and preprocessing of a folder or hub model as text files."""
    try:
        config = load_hf_config(source, offline)
        _validate_kind(source, config)
        tokenizer = load_hf_tokenizer(source, offline)
        with cache_unless_connected(source, offline):
            processor = AutoImageProcessor.from_pretrained(source, local_files_only=offline, trust_remote_code=False)
    except (CodeInModelError, _KindError):
        raise
    except Exception as error:  # each tokenizer and the hub's client raise their own
        raise not_found(source, offline, error, "encoder.image_text.name") from error
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    level = tuple(round(255 * value) for value in mean)
    spec = ImageSpec(
        size=(image_size, image_size),
        interpolation="bicubic",
        resize_mode=resize_mode,
        fill=(level[0], level[1], level[2]) if resize_mode == "border" else (0, 0, 0),
    )
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        files = {name: text for name, text in read_as_text(folder).items() if name not in UNUSED_FILES}
    return files | {PREPROCESSING_FILE: Preprocessing(spec, mean, std).to_json()}


class _KindError(ValueError):
    """A kind of model that this encoder does not read."""


def _validate_kind(name: str, config: Any) -> None:
    if config.model_type not in KINDS:
        raise _KindError(f"encoder '{name}': is a {config.model_type}; give one of {', '.join(KINDS)}")


def _load_assets(name: str, assets: Mapping[str, str]) -> tuple[Any, Any]:
    config, tokenizer = load_hf_assets(name, assets)
    _validate_kind(name, config)
    missing = [mark for mark in (START, END, PAD) if mark not in tokenizer.get_vocab()]
    if missing or not tokenizer.is_fast or tokenizer.pad_token is None:
        what = f"has no token {missing[0]}" if missing else "is no fast one with a token to pad with"
        raise ValueError(f"encoder '{name}': its tokenizer {what}; give a model of {', '.join(KINDS)}")
    if tokenizer.convert_tokens_to_ids(PAD) != config.image_token_id:
        raise ValueError(f"encoder '{name}': its tokenizer has another number for {PAD} than its config")
    tokenizer.padding_side = "right"
    return config, tokenizer


def _describe(assets: Mapping[str, str], tokenizer: Any, max_length: int) -> str:
    files = {file: text for file, text in assets.items() if file not in (CONFIG_FILE, PREPROCESSING_FILE)}
    facts: dict[str, Any] = {
        "config": without_volatile(json.loads(assets[CONFIG_FILE])),
        "tokenizer": hashlib.sha256(assets.get(TOKENIZER_FILE, "").encode()).hexdigest(),
        "preprocessing": assets[PREPROCESSING_FILE],
        "turn": [BEFORE.format(INSTRUCTION), AFTER],
        "max_length": max_length,
    }
    if settings := unusual_settings(tokenizer, files):
        facts["settings"] = settings
    return canonical_text(facts)
