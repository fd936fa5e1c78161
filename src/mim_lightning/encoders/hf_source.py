"""Configs and tokenisers of Hugging Face: from the hub, a folder, or a checkpoint's assets, and never code with them.

A name or folder comes in, what transformers makes of it goes out. Files there may name Python modules that transformers
would import, or attention kernels that it would fetch; a model that needs either is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# keys by which transformers lets the hub or timm bring a part of the model, and types that are timm's
FETCHED, FETCHED_TYPES = ("use_pretrained_backbone", "use_timm_backbone", "backbone"), ("timm_wrapper", "timm_backbone")


class CodeInModelError(ValueError):
    """A model that cannot be built without running code that comes with it."""


def load_hf_config(source: str | Path, offline: bool) -> Any:
    """Return the config of a model of transformers' own.

    Args:
        offline: nothing is asked of the hub, neither now nor by the model when it is built.

    Raises:
        CodeInModelError: the model is code, or asks for code.
        OSError, ValueError: there is none, or it would ask the hub.
    """
    facts, _ = PretrainedConfig.get_config_dict(source, local_files_only=offline)
    if "auto_map" in facts and facts.get("model_type") not in CONFIG_MAPPING:
        raise CodeInModelError(
            f"encoder '{source}': brings Python code of its own, which is not run; give a model that transformers knows"
        )
    if offline:
        _require_nothing_fetched(facts)  # some ask while their config is made
    config = AutoConfig.from_pretrained(source, local_files_only=offline, trust_remote_code=False)
    if offline:
        _require_nothing_fetched(config.to_dict())  # some do so by default
    for part in (config, getattr(config, "text_config", None)):
        attention = getattr(part, "_attn_implementation", None)
        if isinstance(attention, str) and "/" in attention:
            raise CodeInModelError(
                f"encoder '{source}': asks for attention code from the hub, {attention}; not fetched"
            )
    return config


def _require_nothing_fetched(facts: dict[str, Any]) -> None:
    waiting: list[tuple[str, Any]] = [("", facts)]
    while waiting:
        place, part = waiting.pop()
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            if (
                (key in FETCHED and value not in (None, False))
                or (key == "model_type" and value in FETCHED_TYPES)
                or (key == "architecture" and isinstance(value, str) and (":" in value or "/" in value))
            ):
                raise ValueError(f"config.json: {place}{key}: a part of the model would come from the hub; not fetched")
            if isinstance(value, dict | list) and key != "label2id":  # whose keys are anybody's words
                waiting.append((f"{place}{key}.", value))


def load_hf_tokenizer(source: str | Path, offline: bool) -> Any:
    """Return the tokeniser of a model; errors as in transformers."""
    return AutoTokenizer.from_pretrained(source, local_files_only=offline, trust_remote_code=False)
