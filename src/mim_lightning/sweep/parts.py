"""The parts of a search that are Optuna's own, found by name.

A config with `_target_` comes in, a sampler or a pruner goes out.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping
from typing import Any

from mim_lightning.config import build
from mim_lightning.errors import EXTRA


def check_installed() -> None:
    if importlib.util.find_spec("optuna") is None:
        raise ValueError(f"hydra/sweeper=optuna: Optuna is not installed; {EXTRA}")


def build_part(kind: str, config: Mapping[str, Any]) -> Any:
    """Build a sampler or a pruner of Optuna's.

    Raises:
        ValueError: Optuna has none of that name, or it refuses its options.
    """
    if not isinstance(config, Mapping):
        key = f"hydra.sweeper.{kind}"
        raise ValueError(f"{key}={config}: give its class, as {key}._target_=optuna.{kind}s.<name>")
    target = str(config.get("_target_"))
    module, _, name = target.rpartition(".")
    known = importlib.import_module(f"optuna.{kind}s").__all__
    if module in ("", f"optuna.{kind}s") and name not in known:
        close = difflib.get_close_matches(name, known, 1)
        raise ValueError(
            f"hydra.sweeper.{kind}._target_={target}: Optuna has no such {kind}; "
            + (f"did you mean 'optuna.{kind}s.{close[0]}'?" if close else f"there are {', '.join(known)}")
        )
    return build(config)
