"""User errors in one line, and reports of them that cross processes and stay in the folder of a run."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from mim_lightning.config import conf_dir
from mim_lightning.config_groups import choices, groups_of, options_of, options_with
from mim_lightning.former_names import present_overrides
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.io.machine import can_map, has_memory_limit
from mim_lightning.io.os_errors import describe_os_error, lacks_descriptors

EXTRA = "pip install 'mim-lightning[sweep]'"
MAX_OPTIONS = 3  # of a config group, named with it one by one
SPARE_BYTES = 64 << 20  # that a process maps once more, unless it has no memory to go
OUT_OF_MEMORY = "OutOfMemoryError"  # of torch, on a GPU
# errors of a collective whose other process is gone
LOST_PROCESS = ("RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError")
SMALLER = {  # by config: what needs less memory
    "train": "lower data.batch_size, data.eval_batch_size, step.micro_batch_size or data.num_workers",
    "evaluate": "give data=<option> with a lower data.eval_batch_size or data.num_workers",  # a checkpoint's are fixed
}
NOTES = {"failed": "failed.json", "pruned": "pruned.json"}  # in a run's folder, by status: why it has no result


@dataclass(frozen=True)
class ErrorReport:
    """Why a run has no result."""

    kind: str  # name of the exception
    reason: str  # one line

    @property
    def status(self) -> str:
        return "pruned" if self.kind == "TrialPruned" else "failed"


class ChildError(ChildProcessError):
    """A launched process failed and reported why."""

    def __init__(self, report: ErrorReport) -> None:
        super().__init__(report.reason)
        self.report = report


def is_user_error(error: Exception) -> bool:
    """Is this an error that the user can fix, so that one line is better than a call stack?"""
    kinds = (ValueError, OSError, MemoryError, CompactHydraException, OmegaConfBaseException, yaml.YAMLError)
    # by name: Lightning, Optuna and torch are not imported here
    named = type(error).__name__ in ("MisconfigurationException", "TrialPruned", OUT_OF_MEMORY)
    return isinstance(error, kinds) or named or _is_wandbs(error) or _is_missing_package(error) or _lacks_memory(error)


def _is_wandbs(error: BaseException) -> bool:
    return type(error).__module__.startswith("wandb.errors")


def _lacks_memory(error: Exception) -> bool:
    """Is an error that of a library, such as oneDNN, which has no class for a lack of memory?"""
    return isinstance(error, RuntimeError) and not can_map(SPARE_BYTES)


def _is_missing_package(error: BaseException) -> bool:
    """Is a third-party package missing that an option needs, or a library of one that cannot be loaded?"""
    if isinstance(error, ModuleNotFoundError):
        return not (error.name or "").startswith("mim_lightning")
    return isinstance(error, ImportError) and str(error.path or "").endswith(".so")


def to_error_report(error: Exception, name: str) -> ErrorReport:
    """Return the report of an exception; `name` is the config that the entry point composed."""
    if isinstance(error, ChildError):
        return error.report
    kind, text = type(error).__name__, _one_line(error, name)
    return ErrorReport(kind, text if is_user_error(error) else f"{kind}: {text}")


def write_error(path: Path, report: ErrorReport) -> bool:
    """Write a report for the process that launched this one, unless another process has written one.

    The first error causes the others: collectives break when a process is gone.

    Returns:
        whether it was the first.
    """
    try:
        with path.open("x") as file:
            json.dump(asdict(report), file)
    except FileExistsError:
        return False
    return True


def read_error(path: Path) -> ErrorReport | None:
    """Return the report that `write_error` wrote, or None."""
    if not path.exists():
        return None
    with errors_as_damaged_file(path):
        return ErrorReport(**json.loads(path.read_text()))


def write_note(folder: Path, report: ErrorReport) -> None:
    """Note in a run's folder that it failed or was pruned; `clear_notes` when it is started again."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / NOTES[report.status]) as partial:
        partial.write_text(json.dumps(asdict(report), indent=2))


def read_note(folder: Path) -> ErrorReport | None:
    """Return why a run has no result, where a note in its folder says so."""
    return next((read_error(folder / name) for name in NOTES.values() if (folder / name).exists()), None)


def clear_notes(folder: Path) -> None:
    for name in NOTES.values():
        (folder / name).unlink(missing_ok=True)


def _one_line(error: Exception, name: str) -> str:
    if isinstance(error, OSError) and (lacks_descriptors(error) or (error.filename is not None and error.strerror)):
        return describe_os_error(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # PyTorch raises a loader worker's error again as the same class, with the call stack as its text; it sets no
    # attribute to tell the two apart
    if lines and lines[0].startswith("Caught"):
        lines = [lines[-1].split("Error: ", 1)[-1]]
    text = " ".join(lines)
    if isinstance(error, yaml.YAMLError):
        return _not_yaml(error)
    if not text and isinstance(error.__cause__, Exception):
        return _one_line(error.__cause__, name)
    lacks_memory = _lacks_memory(error)
    if lacks_memory:
        limit = " within the limit of this process (ulimit -v)" if has_memory_limit() else ""
        text = f"out of memory{limit}: {text}"
    if isinstance(error, MemoryError) or type(error).__name__ == OUT_OF_MEMORY or lacks_memory:
        reason = ". ".join(text.split(". ")[:2]).rstrip(".") or "out of memory"
        return f"{reason}; {SMALLER[name]}" if name in SMALLER else reason
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_option(error.missing_cfg_file, error.options)
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        key = _as_given(str(cause.full_key))
        return f"no config key '{key}'{hint_at(key, name)}"
    if isinstance(error, OverrideParseException):
        reason = lines[1] if "=" in error.override and len(lines) > 1 else "is no <key>=<value>"
        return f"'{error.override}': {reason}; quote a value with spaces, commas or brackets, as \"key='a, b'\""
    if isinstance(error, ConfigCompositionException):
        return "; ".join([text.rstrip("."), *former_groups()])
    if isinstance(error, InterpolationResolutionError) and isinstance(error.parent_node, DictConfig):
        written = OmegaConf.to_container(error.parent_node, resolve=False)[error.key]  # type: ignore[index]
        return f"{error.full_key}: cannot be resolved from {written}: a key in it is missing or null"
    if _is_wandbs(error):
        return f"W&B: {text.rstrip('.')}; or keep the run on this machine with logger.wandb.offline=true"
    return text


def _not_yaml(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)  # of all but characters that YAML does not have
    place = f"{mark.name}, line {mark.line + 1}" if mark is not None else getattr(error, "name", "")
    return f"{place}: not valid YAML: {getattr(error, 'problem', None) or getattr(error, 'reason', error)}"


def former_groups() -> Iterator[str]:
    """Yield where a user's own config names a config group by its former name, and the present one.

    Overrides get the present name before Hydra reads them; a defaults list is read by Hydra itself.
    """
    arguments = [part for argument in sys.argv[1:] for part in argument.split("=", 1)]
    own = [path for flag, path in pairwise(arguments) if flag in ("--config-dir", "-cd")]
    for folder in (Path(conf_dir()), *map(Path, own)):
        for path in sorted(folder.rglob("*.yaml")):
            with suppress(
                OSError, ValueError, TypeError, AttributeError, yaml.YAMLError
            ):  # not readable, or not a config
                for entry in yaml.safe_load(path.read_text("utf-8")).get("defaults") or ():
                    for key, option in entry.items() if isinstance(entry, dict) else ():
                        group = key.split()[-1]  # "override /data/sampling"
                        group = group[1:] if group.startswith("/") else str(path.relative_to(folder).parent / group)
                        former = f"{group}={option}"
                        (present,) = present_overrides([former])
                        if present != former:
                            yield f"{path}: {former} is now {present}"


def _no_option(path: str, options: Sequence[str] | None) -> str:
    """Return the message for an unknown option of a config group.

    Args:
        path: "<group>/<option>".
        options: of the group; None where several were given to Hydra at once.
    """
    group, _, wanted = path.rpartition("/")
    known = choices(options) if options is not None else options_of(group)
    close = difflib.get_close_matches(wanted, known, 1)
    return (
        f"no option '{wanted}' in config group '{group}'; there are {', '.join(known)}"
        + (f"; did you mean '{close[0]}'?" if close else "")
        + (f"; more with {EXTRA}" if group == "hydra/launcher" and "joblib" not in known else "")
    )


def hint_at(key: str, name: str) -> str:
    """Return a hint with the options of a group that have a key, or the existing keys closest to a misspelt one."""
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
    group, options = options_with(key) if key.split(".")[0] in groups_of(name) else ("", [])
    if options:
        close = [path for path in close if "." not in path]  # those of another section have nothing to do with it
        few = " or ".join(f"{group}={option}" for option in options)
        found = few if len(options) <= MAX_OPTIONS else f"{group}=<option> ({', '.join(options)})"
        return f"; choose {found}, which has it" + (f"; or did you mean '{close[0]}'?" if close else "")
    return f"; did you mean {' or '.join(repr(path) for path in close[:2])}?" if close else ""


def _as_given(key: str) -> str:
    """Return a key as the command line has it: of a config group that is null Hydra names the group alone."""
    is_group = (Path(conf_dir()) / key).is_dir()
    given = (word.lstrip("+").partition("=")[0] for word in sys.argv[1:])
    return next((word for word in given if is_group and word.startswith(f"{key}.")), key)


def _dotted_keys(config: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            yield f"{prefix}{key}"
            yield from _dotted_keys(value, f"{prefix}{key}.")
