"""Configs and tokenisers of Hugging Face: from the hub, a folder, or a checkpoint's assets, and never code with them.

A name or folder comes in, what transformers makes of it goes out. Files there may name Python modules that transformers
would import, or attention kernels that it would fetch; a model that needs either is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


class CodeInModelError(ValueError):
    """A model that cannot be built without running code that comes with it."""


def load_hf_config(source: str | Path, offline: bool) -> Any:
    """Return the config of a model of transformers' own.

    Raises:
        CodeInModelError: the model is code, or asks for code.
        OSError, ValueError: there is none.
    """
    facts, _ = PretrainedConfig.get_config_dict(source, local_files_only=offline)
    if "auto_map" in facts and facts.get("model_type") not in CONFIG_MAPPING:
        raise CodeInModelError(
            f"encoder '{source}': brings Python code of its own, which is not run; give a model that transformers knows"
        )
    config = AutoConfig.from_pretrained(source, local_files_only=offline, trust_remote_code=False)
    for part in (config, getattr(config, "text_config", None)):
        attention = getattr(part, "_attn_implementation", None)
        if isinstance(attention, str) and "/" in attention:
            raise CodeInModelError(
                f"encoder '{source}': asks for attention code from the hub, {attention}; not fetched"
            )
    return config


def load_hf_tokenizer(source: str | Path, offline: bool) -> Any:
    """Return the tokeniser of a model; errors as in transformers."""
    return AutoTokenizer.from_pretrained(source, local_files_only=offline, trust_remote_code=False)
