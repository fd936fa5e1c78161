"""What a transformers tokenizer does besides what its `tokenizer.json` says, for the fingerprint.

Two tokenizers with one `tokenizer.json` may cut, split or pad otherwise: their other settings lie in further files.
Told are the settings in force, and of these only the ones that most tokenizers do not have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

TOKENIZER_FILE, TOKENIZER_CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
VERSION_FILE, VERSION = "encoder.json", 2  # an asset; files from before settings were told have none
SET_BY_EACH_CALL = ("truncation", "padding")
PLACES, PLACE_ENDINGS = ("vocab", "merges"), ("_file", "_path", "_dir")  # settings that may name a file
WITHOUT_EFFECT = ("name_or_path", "tokenizer_file", "vocab_file", "special_tokens_map_file", "chat_template")


def unusual_settings(tokenizer: Any, assets: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings by name that change tokens and that neither `tokenizer.json` nor its class tells.

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


def without_places(text: str) -> str:
    """Return a `tokenizer_config.json` that names no files: they lie beside it, and a stranger's may name any other."""
    facts = json.loads(text)
    named = [
        key for key, value in facts.items() if isinstance(value, str) and (key in PLACES or key.endswith(PLACE_ENDINGS))
    ]
    return json.dumps({key: value for key, value in facts.items() if key not in named}) if named else text


def _rules(text: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(text).items() if key not in SET_BY_EACH_CALL}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
