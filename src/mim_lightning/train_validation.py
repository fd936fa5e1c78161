"""What is validated of a run's config before anything is built: types, seed, folder, time, and its checkpoints."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from mim_lightning.expected_types import validate_type

# keys that no constructor validates, or only after others have used them -> their types
KINDS: dict[str, Any] = {
    **dict.fromkeys(("run.id", "run.name", "run.folder", "paths.runs", "monitor", "results_from"), str),
    **dict.fromkeys(("trainer._target_", "data._target_"), str),
    **dict.fromkeys(
        ("encoder", "model", "loss", "data", "optim", "schedule", "trainer", "callbacks", "directions", "logger"), dict
    ),
    **dict.fromkeys(("model.towers", "model.pairs", "model.fusions", "model.tied", "loss.function"), dict),
    "embed_dim": int | None,
    "init_from": str | None,
    "reuse_memory": bool,
    "float32_matmul_precision": Literal["highest", "high", "medium"],
    "model.compile": bool | str,
}


def validate_kinds(config: Mapping[str, Any]) -> None:
    """Validate the types of a run's config before anything is looked up in it.

    Raises:
        ValueError: naming the key.
    """
    for key, kind in KINDS.items():
        value: Any = config
        for name in key.split("."):
            value = value.get(name)
        validate_type(key, value, kind)
    model = config["model"]
    for name, tower in model["towers"].items():
        if not model["tied"].get(name):  # else it is the other's
            validate_type(f"model.towers.{name}", tower, dict)
            validate_type(f"model.towers.{name}.encoder", tower.get("encoder"), dict)
    validate_seed(config["seed"])


def validate_seed(seed: Any) -> None:
    """Validate a seed: a run without one could not be found again.

    Raises:
        ValueError: not a whole number of 32 bits.
    """
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"seed={'null' if seed is None else seed}: give a whole number from 0 to {2**32 - 1}")


def validate_writable(folder: Path) -> None:
    """Check that a run's folder can be created and written, before anything is computed.

    Raises:
        ValueError: it cannot; names the file or folder that prevents it.
    """
    nearest = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        reason = f"{nearest} is a file"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        reason = f"{nearest} cannot be written"
    else:
        return
    raise ValueError(f"{folder}: {reason}; give another folder as paths.runs=<folder> or MIM_RUNS_DIR")


def validate_row_weights(config: Mapping[str, Any]) -> None:
    """Check that rows do not count by their weight twice.

    Raises:
        ValueError: the loss and the order of samples both read it.
    """
    sampling = config["data"].get("sampling") or {}
    if config["loss"].get("row_weights") and sampling.get("_target_") == "mim_lightning.data.WeightedSettings":
        raise ValueError(
            "loss.row_weights=true: data/sampling=weighted draws rows by the column 'weight' already; leave out one of "
            "the two"
        )


def validate_results_from(config: Mapping[str, Any]) -> None:
    """Check that the checkpoint of `results_from` will be written, and by the last step if it is `last`.

    Checkpoints are written after validation, or every number of steps.

    Raises:
        ValueError: it would not; names the key to change.
    """
    which, trainer, last = config["results_from"], config["trainer"], config["callbacks"].get("last")
    if which == "last" and isinstance(last, Mapping) and last.get("every_n_train_steps"):
        raise ValueError("results_from=last: callbacks.last.every_n_train_steps may miss the last step; set it to null")
    every, num_epochs = trainer.get("check_val_every_n_epoch") or 1, trainer.get("max_epochs") or 0
    if num_epochs > 0 and (num_epochs < every or (which == "last" and num_epochs % every)):
        unseen = "the last" if num_epochs >= every else "any"
        raise ValueError(
            f"trainer.check_val_every_n_epoch={every}: results_from={which} would never see {unseen} of {num_epochs} "
            "epochs; give a divisor of trainer.max_epochs"
        )


def parse_max_time(value: str | Mapping[str, float] | None) -> timedelta | None:
    """Return the time of `trainer.max_time`: DD:HH:MM:SS, or {hours: 12}.

    Raises:
        ValueError: it is neither, or no time at all.
    """
    if value is None:
        return None
    units = ("days", "hours", "minutes", "seconds")
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", str(value).strip())
    parts = dict(zip(units, map(int, found.groups()), strict=True)) if found else value
    numbers = parts.values() if isinstance(parts, Mapping) and parts.keys() <= {*units} else ()
    is_time = numbers and all(isinstance(number, int | float) and number >= 0 for number in numbers)
    if not is_time or not any(numbers):
        raise ValueError(f"trainer.max_time={value}: give DD:HH:MM:SS, as 00:12:00:00, or {{hours: 12}}")
    return timedelta(**parts)  # type: ignore[arg-type]
