"""Repetitions of a run: the config keys in which runs that answer one question differ, and their values in a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REPEATED_KEYS = ("seed", "data.seed", "data.splits.fold", "data.splits.label")


def seed_of(config: Mapping[str, Any]) -> int:
    return int(config.get("seed", 0))


def fold_of(config: Mapping[str, Any]) -> int:
    """Return the fold of the data; 0 if they have none."""
    return int((config.get("data", {}).get("splits") or {}).get("fold", 0))
