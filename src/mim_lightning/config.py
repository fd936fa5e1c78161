"""Where conf/ is, what its top-level keys are, and how a config becomes objects.

A door gives its config's name and a function; the function gets plain containers. Besides the doors this is the
only file that knows Hydra and OmegaConf. Whatever a user can mend ends as one line on stderr and exit code 2.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    from mim_lightning.losses.objective import Objective
    from mim_lightning.model.matcher import Matcher

FROZEN_CONFIG = "MIM_FROZEN_CONFIG"  # environment variable: a resolved config, for launched processes
Config = dict[str, Any]


def conf_dir() -> str:
    """Return conf/: inside an installed wheel, or at the root of the repository."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return str(installed if installed.is_dir() else package.parents[1] / "conf")


def run_door(name: str, function: Callable[[Config], Any]) -> None:
    """Compose `conf/<name>.yaml` with the command line and call `function` with the result; report errors."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here instead of being printed by Hydra
    frozen = os.environ.get(FROZEN_CONFIG)

    def guarded(config: DictConfig) -> Any:
        # an exit from within: an exception on its way through Hydra is printed with the whole call stack
        try:
            return function(to_plain(config))
        except (ValueError, ChildProcessError, OmegaConfBaseException) as error:
            sys.exit(_fail(error, name))

    if frozen:
        guarded(OmegaConf.load(frozen))  # type: ignore[arg-type]
        return
    try:
        hydra.main(version_base="1.3", config_path=conf_dir(), config_name=name)(guarded)()
    except (CompactHydraException, OmegaConfBaseException) as error:
        sys.exit(_fail(error, name))


def compose(name: str, overrides: list[str]) -> Config:
    """Return the config that a door would get; for tests and notebooks."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
        return to_plain(hydra.compose(name, overrides))


def to_plain(config: DictConfig | Any) -> Config:
    """Resolve a config into plain containers.

    Raises:
        ValueError: a mandatory key has no value; names it.
    """
    missing = OmegaConf.missing_keys(config)
    if missing:
        key = sorted(missing)[0]
        raise ValueError(f"{key}: needs a value; give {key}=<value>")
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def save_config(config: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(dict(config)), path)


def build(config: Mapping[str, Any] | None, **late: Any) -> Any:
    """Instantiate a config with `_target_`, its parts first; None stays None.

    `late` arguments are objects made at the door; they go to a config with `_partial_: true`.

    Raises:
        ValueError: the constructor refused a value, or does not know a key.
    """
    if config is None:
        return None
    try:
        made = hydra.utils.instantiate(OmegaConf.create(dict(config)), _convert_="all")
        return made(**late) if late else made
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise cause from None
        reason = str(cause or error).splitlines()[0]
        raise ValueError(f"{config.get('_target_', 'config')}: {reason}") from error
    except TypeError as error:
        if "keyword argument" not in str(error):  # a fault of ours, not of a key
            raise
        raise ValueError(str(error)) from error


def build_each(configs: Mapping[str, Any]) -> dict[str, Any]:
    """Instantiate a dict of configs by name; an entry that is null was switched off."""
    return {name: build(config) for name, config in configs.items() if config is not None}


def build_matcher(config: Mapping[str, Any], assets: Mapping[str, Mapping[str, str]] | None = None) -> Matcher:
    """Build the towers that own weights, and the matcher around them.

    Args:
        config: a resolved run config; its `model` section is read.
        assets: by tower, from a checkpoint. When given, nothing is looked up or downloaded.
    """
    from mim_lightning.model.matcher import Matcher

    model = config["model"]
    tied = {name: owner for name, owner in model["tied"].items() if owner is not None}
    towers = {}
    for name, tower in model["towers"].items():
        if name not in tied:
            encoder = _build_encoder(tower["encoder"], assets[name] if assets is not None else None)
            rest = {key: value for key, value in tower.items() if key != "encoder"}
            towers[name] = build({**rest, "_partial_": True}, encoder=encoder)
    return Matcher(towers, tied, model["fusions"])


def _build_encoder(config: Mapping[str, Any], assets: Mapping[str, str] | None) -> Any:
    if assets is None:
        return build(config)
    config = {**config, "pretrained": None} if "pretrained" in config else config
    # as objects: a tokeniser's text may hold what OmegaConf takes for an interpolation
    return build({**config, "_partial_": True}, assets=assets) if assets else build(config)


def build_objective(config: Mapping[str, Any], names: tuple[str, ...]) -> Objective:
    """Build the objective of a run config over the towers and fusions in `names`."""
    from mim_lightning.losses.objective import Objective, Pair

    pairs = {name: Pair(**pair) for name, pair in config["model"]["pairs"].items() if pair is not None}
    options = dict(config["loss"])
    return Objective(pairs, build(options.pop("function")), names, **options)


def _fail(error: Exception, name: str) -> int:
    print(f"error: {_one_line(error, name)}", file=sys.stderr)
    return 2


def _one_line(error: Exception, name: str) -> str:
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    match = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'", text)
    if match:
        return f"no config key '{match[1]}'{_hint(match[1], name)}"
    match = re.search(r"Could not find '([^']+)' Available options in '([^']+)': (.*)", text)
    if match:
        wanted, options = match[1].split("/")[-1], match[3].split()
        close = difflib.get_close_matches(wanted, options, 1)
        return f"no option '{wanted}' in config group '{match[2]}'; there are {', '.join(options)}" + (
            f"; did you mean '{close[0]}'?" if close else ""
        )
    return text


def _hint(key: str, name: str) -> str:
    """Return the existing keys that look most like a misspelt one."""
    key = key.split("@")[0]
    try:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
            known = list(_dotted_keys(OmegaConf.to_container(hydra.compose(name), resolve=False)))
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
