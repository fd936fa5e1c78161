"""What went wrong, told in one line, and how it travels: between processes, and into the folder of a run.

An exception comes in, a Failure goes out; doors tell it, launched processes hand it to the one that launched them,
a sweep's ledger takes it down.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException, ConfigCompositionException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from mim_lightning.config import conf_dir
from mim_lightning.io.damaged_file import errors_as_damaged_file

EXTRA = "pip install 'mim-lightning[sweep]'"
NOTES = {"failed": "failed.json", "pruned": "pruned.json"}  # in a run's folder, by status: why it came to no result


@dataclass(frozen=True)
class Failure:
    """Why a run came to no result."""

    kind: str  # name of the exception
    reason: str  # one line

    @property
    def status(self) -> str:
        return "pruned" if self.kind == "TrialPruned" else "failed"


class ChildError(ChildProcessError):
    """A launched process failed, and has left word of why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def is_mendable(error: Exception) -> bool:
    """Is this a mistake of the user's, so that one line tells more than a call stack?"""
    kinds = (ValueError, OSError, CompactHydraException, OmegaConfBaseException)
    # the latter two are Lightning's and Optuna's own words; their rooms are not ours to import from
    named = type(error).__name__ in ("MisconfigurationException", "TrialPruned")
    return isinstance(error, kinds) or named or _is_wandbs(error) or _is_missing_package(error)


def _is_wandbs(error: BaseException) -> bool:
    return type(error).__module__.startswith("wandb.errors")


def _is_missing_package(error: BaseException) -> bool:
    """Does a package of others lack, which an option of the user's needs?"""
    return isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("mim_lightning")


def describe_failure(error: Exception, name: str) -> Failure:
    """Return an exception as one line; `name` is the config that the door composed."""
    if isinstance(error, ChildError):
        return error.failure
    kind, text = type(error).__name__, _one_line(error, name)
    return Failure(kind, text if is_mendable(error) else f"{kind}: {text}")


def leave_failure(path: Path, failure: Failure) -> None:
    """Write a failure for the process that waits for this one; of several processes the first is heard.

    The others fail because of it: their collectives break when it is gone.
    """
    with suppress(FileExistsError), path.open("x") as file:
        json.dump(asdict(failure), file)


def find_failure(path: Path) -> Failure | None:
    """Return what `leave_failure` left, or None if nobody came to leave anything."""
    if not path.exists():
        return None
    with errors_as_damaged_file(path):
        return Failure(**json.loads(path.read_text()))


def write_note(folder: Path, failure: Failure) -> None:
    """Note in a run's folder that it failed or was pruned; `clear_notes` when it is started again."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NOTES[failure.status]).write_text(json.dumps(asdict(failure), indent=2))


def clear_notes(folder: Path) -> None:
    for name in NOTES.values():
        (folder / name).unlink(missing_ok=True)


def _one_line(error: Exception, name: str) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # PyTorch raises a loader worker's error again as the same class, with the call stack as its text; it sets no
    # attribute to tell the two apart
    if lines and lines[0].startswith("Caught"):
        lines = [lines[-1].split("Error: ", 1)[-1]]
    text = " ".join(lines)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_option(error.missing_cfg_file, error.options)
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        key = str(cause.full_key)
        return f"no config key '{key}'{hint_at(key, name)}"
    if isinstance(error, InterpolationResolutionError) and isinstance(error.parent_node, DictConfig):
        written = OmegaConf.to_container(error.parent_node, resolve=False)[error.key]  # type: ignore[index]
        return f"{error.full_key}: cannot be made from {written}: a key in it is missing, or null"
    if _is_wandbs(error):
        return f"W&B: {text.rstrip('.')}; or keep the run on this machine with logger.wandb.offline=true"
    return text


def _no_option(path: str, options: Sequence[str] | None) -> str:
    """Say that a config group lacks an option, and which ones it has.

    Args:
        path: "<group>/<option>".
        options: of the group; None where Hydra was given several at once.
    """
    group, _, wanted = path.rpartition("/")
    found = options if options is not None else sorted(file.stem for file in (Path(conf_dir()) / group).glob("*.yaml"))
    choices = [option for option in found if option != "base"]  # what the others of its group extend
    close = difflib.get_close_matches(wanted, choices, 1)
    return (
        f"no option '{wanted}' in config group '{group}'; there are {', '.join(choices)}"
        + (f"; did you mean '{close[0]}'?" if close else "")
        + (f"; more with {EXTRA}" if group == "hydra/launcher" and "joblib" not in choices else "")
    )


def hint_at(key: str, name: str) -> str:
    """Return the existing keys that look most like a misspelt one."""
    key = key.split("@")[0]
    try:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
            known = list(_dotted_keys(OmegaConf.to_container(hydra.compose(name), resolve=False)))
            known = [path for path in known if path != key]  # which other choices of a group may have
    except (CompactHydraException, OmegaConfBaseException):
        return ""
    last = {path.rsplit(".", 1)[-1] for path in known}
    close = difflib.get_close_matches(key, known, 2, cutoff=0.75) or [
        path
        for word in difflib.get_close_matches(key.rsplit(".", 1)[-1], sorted(last), 1)
        for path in known
        if path.rsplit(".", 1)[-1] == word
    ]
    return f"; did you mean {' or '.join(repr(path) for path in close[:2])}?" if close else ""


def _dotted_keys(config: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            yield f"{prefix}{key}"
            yield from _dotted_keys(value, f"{prefix}{key}.")
