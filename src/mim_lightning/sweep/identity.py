"""Which sweep this is: what varies in it, and the name of the folder that belongs to it.

The config of a multirun comes in, before it is taken apart into jobs; keys and a stable name go out. The same command
gives the same name, so that a sweep started again finds its ledger and its study.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from mim_lightning.run import IRRELEVANT, IRRELEVANT_IN
from mim_lightning.targets import to_first_targets

PENDING_NAME = "<sweep>"  # stands in conf/train.yaml until the name is known
PLACES = ("slurm",)  # options of the group `sweep` that say where jobs run: begun here, a sweep may go on there


def parse_overrides(config: DictConfig) -> dict[str, Override]:
    """Return the overrides of a multirun by key, those of `hydra.sweeper.params` first: the command line prevails."""
    params = config.hydra.sweeper.params or {}
    return _parse([*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task])


def swept_keys(config: DictConfig) -> list[str]:
    return [key for key, override in parse_overrides(config).items() if override.is_sweep_override()]


def pick_overrides(overrides: Iterable[str], keys: Container[str]) -> dict[str, str]:
    """Return a job's overrides of `keys`, as they are written."""
    return {key: override.get_value_string() for key, override in _parse(overrides).items() if key in keys}


def name_sweep(config: DictConfig) -> str:
    """Return `<kind>-<digest>`, the digest made of what varies and of whatever else decides the results."""
    overrides = parse_overrides(config)
    swept = {key: override.get_value_string() for key, override in overrides.items() if override.is_sweep_override()}
    sweeper = str(config.hydra.sweeper._target_)
    fixed = to_first_targets(_fixed(config))
    digest = hashlib.sha256(json.dumps([fixed, swept, sweeper], sort_keys=True).encode()).hexdigest()[:8]
    # from the command line: Hydra's record of choices leaves out a group of which several are chosen
    chosen = re.findall(r"\w+", overrides["sweep"].get_value_string()) if "sweep" in overrides else []
    kinds = [word for word in chosen if word not in ("null", *PLACES)]
    return "-".join([*(kinds or ["optuna" if "Optuna" in sweeper else "grid"]), digest])


def own_config(config: DictConfig) -> DictConfig:
    """Return a job's config without Hydra's part."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    assert isinstance(own, DictConfig)
    return own


def _parse(overrides: Iterable[str]) -> dict[str, Override]:
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {override.get_key_element(): override for override in parsed}


def _fixed(config: DictConfig) -> dict[str, Any]:
    """Return what all jobs share, as written: what varies has no value here."""
    fixed: Any = OmegaConf.to_container(own_config(config), resolve=False)
    fixed = {key: value for key, value in fixed.items() if key not in IRRELEVANT}
    for section, keys in IRRELEVANT_IN.items():
        if section != "data":  # a run describes its data, a sweep names them
            fixed[section] = {key: value for key, value in fixed[section].items() if key not in keys}
    return fixed
