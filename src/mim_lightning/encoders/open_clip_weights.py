"""Config, weights and tokenizer files of an OpenCLIP model by its name and weights tag.

A name is one of OpenCLIP's own, `local-dir:<folder>` or `hf-hub:<owner/model>`. What cannot be loaded or does not fit
is an error of one line with the right value.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from mim_lightning.encoders.hf_files import CodeInModelError, load_hf_config
from mim_lightning.encoders.hub_connection import cache_unless_connected, why_not_downloaded
from mim_lightning.encoders.interface import Pretrained, canonical_text, names_by_pattern, unknown_name

try:
    import open_clip
    from open_clip.pretrained import download_pretrained_from_hf
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict
except ImportError as error:
    raise ValueError("OpenCLIP encoders: install the extra: pip install 'mim-lightning[clip]'") from error

CONFIG_FILE = "open_clip_config.json"  # OpenCLIP's own name and format in a folder that it can load
TOKENIZER_KEYS = ("clean", "strip_sep_token", "language", "additional_special_tokens", "reduction_mask")
FOLDER_PREFIX, HUB_PREFIX = "local-dir:", "hf-hub:"


def read_config(name: str, pretrained: Pretrained, assets: Mapping[str, str] | None) -> dict[str, Any]:
    """Return `model_cfg` and `preprocess_cfg` of a model and its weights, as in OpenCLIP's own config file."""
    if assets is not None:
        config = json.loads(assets[CONFIG_FILE])
        _validate_parts(name, config["model_cfg"])
        return config
    if name.startswith((FOLDER_PREFIX, HUB_PREFIX)):
        config = json.loads(_find_config(name).read_text("utf-8"))
        model, weights = config["model_cfg"], config.get("preprocess_cfg", {})
    else:
        model = open_clip.get_model_config(name)
        if model is None:
            raise unknown_name("OpenCLIP model", name, open_clip.list_models())
        weights = _tag_preprocessing(name, pretrained, model)
    if "multimodal_cfg" in model:
        raise ValueError(f"encoder '{name}': a captioning model (CoCa), whose halves do not stand alone")
    _validate_parts(name, model)
    preprocess = merge_preprocess_dict(PreprocessCfg(), weights)
    return {"model_cfg": model, "preprocess_cfg": preprocess | {"size": model["vision_cfg"]["image_size"]}}


def _validate_parts(name: str, model: Mapping[str, Any]) -> None:
    """Raise a ValueError if a config, which may be untrusted, would make OpenCLIP load parts or code from elsewhere."""
    part = str(model["vision_cfg"].get("timm_model_name") or "")
    if ":" in part or "/" in part:
        raise ValueError(f"encoder '{name}': vision_cfg.timm_model_name '{part}' is no timm architecture")
    for key in model["text_cfg"].get("tokenizer_kwargs") or {}:
        if key not in TOKENIZER_KEYS:
            raise ValueError(f"encoder '{name}': text_cfg.tokenizer_kwargs.{key}: only {', '.join(TOKENIZER_KEYS)}")


def _find_config(name: str) -> Path:
    """Return the config file in the folder or hub repository of a prefixed name."""
    if name.startswith(HUB_PREFIX):
        try:
            with cache_unless_connected(name):
                return Path(download_pretrained_from_hf(name.removeprefix(HUB_PREFIX), filename=CONFIG_FILE))
        except Exception as error:  # the hub's client raises a dozen kinds
            raise _no_weights(name, CONFIG_FILE, error) from error
    path = Path(name.removeprefix(FOLDER_PREFIX)) / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"encoder '{name}': {path} does not exist; give a folder that OpenCLIP saved")
    return path


def _choose_tag(name: str, pretrained: Pretrained) -> str | None:
    """Return the weights tag or file for OpenCLIP; None for a folder or hub repository, which has one set."""
    if name.startswith((FOLDER_PREFIX, HUB_PREFIX)):
        return None
    tags = open_clip.list_pretrained_tags_by_model(name)
    if isinstance(pretrained, str):
        if pretrained in tags or Path(pretrained).is_file():
            return pretrained
        if "/" in pretrained:
            raise ValueError(f"encoder '{name}': weights file {pretrained} does not exist")
    elif len(tags) == 1:
        return tags[0]
    choices = f"a file or one of {', '.join(tags)}" if tags else "a file"
    raise ValueError(f"encoder '{name}': pretrained={pretrained} names no weights; give {choices}")


def _tag_preprocessing(name: str, pretrained: Pretrained, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return how images are prepared for the weights of a tag; empty for a file or for random weights."""
    tag = _choose_tag(name, pretrained) if pretrained else None
    weights = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    wants = "quick_gelu" if weights.get("quick_gelu", False) else "plain"
    if weights and (wants == "quick_gelu") != model.get("quick_gelu", False):
        # OpenCLIP only warns, and the features are worse
        right = f"{name}-quickgelu" if wants == "quick_gelu" else name.removesuffix("-quickgelu")
        raise ValueError(f"encoder '{name}': weights '{tag}' were trained with {wants} activations; give name={right}")
    return weights


def load_pair(name: str, pretrained: Pretrained, config: Mapping[str, Any], image_size: int | None = None) -> nn.Module:
    """Return the whole model with its weights, of which an encoder keeps one half."""
    tag = _choose_tag(name, pretrained)
    try:
        if source := config["model_cfg"]["text_cfg"].get("hf_model_name"):
            load_hf_config(source, offline=False)  # else OpenCLIP asks whether to run code
        # `force_custom_text` makes the text half a module of its own in every model family
        options = {"force_custom_text": True, "force_image_size": image_size, "require_pretrained": True}
        with cache_unless_connected(tag or name.removeprefix(FOLDER_PREFIX)), _without_log():
            return open_clip.create_model(name, tag, **options)
    except CodeInModelError:
        raise
    except Exception as error:  # the hub's client, safetensors and torch each raise their own
        raise _no_weights(name, tag, error) from error


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep OpenCLIP from logging the error that it raises, too."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(level)


def _no_weights(name: str, what: str | None, error: Exception) -> ValueError:
    if name.startswith(FOLDER_PREFIX) or Path(what or "").is_file():
        reason = " ".join(str(error).split())[:200]
        return ValueError(f"encoder '{name}': {what or 'files in this folder'} do not fit the model: {reason}")
    source, cache = _source_of(name, what)
    return ValueError(
        f"encoder '{name}': '{what or 'weights'}' cannot be downloaded ({source}); copy {cache} from a "
        f"machine that has it, or give encoder.image.pretrained=<file> and encoder.text.pretrained=<file>, or "
        f"name={FOLDER_PREFIX}<folder>"
    )


def _source_of(name: str, tag: str | None) -> tuple[str, str]:
    """Return where the weights of a tag were looked for, and the folder that keeps them."""
    known = open_clip.get_pretrained_cfg(name, tag or "")
    repository = str(known.get("hf_hub") or "").rstrip("/")
    if known.get("url") and not repository:
        return f"from {known['url']}, which is not the hub", "~/.cache/clip"
    return f"{repository}: {why_not_downloaded()}" if repository else why_not_downloaded(), "HF_HOME"


def without_download(model: Mapping[str, Any], folder: str | None = None) -> dict[str, Any]:
    """Return a model config whose parts stay random; a Hugging Face text half reads its config from `folder`."""
    copy: dict[str, Any] = json.loads(json.dumps(model))
    if "timm_model_name" in copy["vision_cfg"]:
        copy["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in copy["text_cfg"]:
        copy["text_cfg"] |= {"hf_model_pretrained": False, "hf_model_name": folder}
    return copy


def listed_without_decay(network: nn.Module) -> set[str]:
    """Return the parameters that OpenCLIP's and timm's parts list as without weight decay."""
    if callable(listed := getattr(network, "no_weight_decay", None)):
        return names_by_pattern(network, listed())
    parts = network.named_children()
    return {f"{name}.{inner}" for name, part in parts for inner in listed_without_decay(part)}


def read_text_assets(name: str, config: Mapping[str, Any], offline: bool) -> dict[str, str]:
    """Return the model's config, and the files of its Hugging Face tokenizer or text half if it has one."""
    with TemporaryDirectory() as folder:
        text_cfg = config["model_cfg"]["text_cfg"]
        try:
            if "hf_model_name" in text_cfg:
                load_hf_config(text_cfg["hf_model_name"], offline).save_pretrained(folder)
            if "hf_tokenizer_name" in text_cfg:
                with cache_unless_connected(name.removeprefix(FOLDER_PREFIX), offline):
                    tokenizer = open_clip.get_tokenizer(name, local_files_only=offline, trust_remote_code=False)
                tokenizer.save_pretrained(folder)
        except CodeInModelError:
            raise
        except (OSError, ValueError) as error:
            raise _no_weights(name, "tokenizer", error) from error
        files = {path.name: path.read_text("utf-8") for path in sorted(Path(folder).iterdir()) if path.is_file()}
    return files | {CONFIG_FILE: canonical_text(config)}
