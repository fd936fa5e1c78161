"""The identity of a sweep: which keys it varies, and the name of its folder.

The same command gives the same name, so that a sweep started again finds its job log and its study.
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

from mim_lightning.config import warn_of_former_name
from mim_lightning.former_names import first_override, present_overrides, to_first
from mim_lightning.run import NOT_IN_RUN_ID, NOT_IN_RUN_ID_OF

PENDING_NAME = "<sweep>"  # in conf/train.yaml, replaced once the name is known
PLACEMENTS = ("slurm",)  # options of the group `sweep` that say where jobs run: a sweep may be resumed with another


def parse_overrides(config: DictConfig) -> dict[str, Override]:
    """Return the overrides of a multirun by key: of `hydra.sweeper.params` and the command line, which wins."""
    params = config.hydra.sweeper.params or {}
    return _parse([*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task])


def use_present_params(config: DictConfig) -> None:
    """Rename keys of `hydra.sweeper.params` in a user's own YAML that have former names: jobs get them as overrides."""
    written = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    present = present_overrides(written, report=warn_of_former_name)
    if present != written:
        config.hydra.sweeper.params = dict(override.split("=", 1) for override in present)


def swept_keys(config: DictConfig) -> list[str]:
    return [key for key, override in parse_overrides(config).items() if override.is_sweep_override()]


def pick_overrides(overrides: Iterable[str], keys: Container[str]) -> dict[str, str]:
    """Return a job's overrides of `keys`, as they are written."""
    return {key: override.get_value_string() for key, override in _parse(overrides).items() if key in keys}


def name_sweep(config: DictConfig) -> str:
    """Return `<kind>-<digest>`; the digest is of what varies and of everything else that decides the results."""
    overrides = parse_overrides(config)
    written = (
        f"{key}={override.get_value_string()}" for key, override in overrides.items() if override.is_sweep_override()
    )
    swept = dict(first_override(override).split("=", 1) for override in written)
    sweeper = str(config.hydra.sweeper._target_)
    content = json.dumps([_fixed_config(config), swept, sweeper], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    # from the command line: Hydra's record of choices omits a group with several options chosen
    chosen = re.findall(r"\w+", overrides["sweep"].get_value_string()) if "sweep" in overrides else []
    kinds = [word for word in chosen if word not in ("null", *PLACEMENTS)]
    return "-".join([*(kinds or ["optuna" if "Optuna" in sweeper else "grid"]), digest])


def own_config(config: DictConfig) -> DictConfig:
    """Return a job's config without Hydra's section."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    assert isinstance(own, DictConfig)
    return own


def _parse(overrides: Iterable[str]) -> dict[str, Override]:
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {override.get_key_element(): override for override in parsed}


def _fixed_config(config: DictConfig) -> dict[str, Any]:
    """Return what all jobs share, unresolved: keys that vary have no value here."""
    fixed: Any = OmegaConf.to_container(own_config(config), resolve=False)
    fixed = {key: value for key, value in fixed.items() if key not in NOT_IN_RUN_ID}
    for section, keys in NOT_IN_RUN_ID_OF.items():
        # a run describes its data, a sweep names them
        left_out = keys if section != "data" else ("feature_cache",)
        fixed[section] = {key: value for key, value in fixed[section].items() if key not in left_out}
    for section, key in (("cache", "connections"), ("validation", "memory_limit")):  # speed and memory, not data
        fixed["data"][section].pop(key, None)
    for name, tower in fixed["model"]["towers"].items():  # what an encoder brings is left out above, and decides here
        if isinstance(tower, dict) and str(tower.get("train")).startswith("${oc.select:encoder.training."):
            tower["train"] = OmegaConf.select(config, f"model.towers.{name}.train")
    return to_first(fixed)
