"""Where conf/ is, and how a config becomes plain containers and those become objects.

Only this module, `config_groups`, `cli`, `errors` and `sweep` use Hydra and OmegaConf.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from mim_lightning.encoder_values import place_encoder_values
from mim_lightning.expected_types import validate_arguments, validate_type
from mim_lightning.former_names import present_overrides, to_present
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.overrides import open_up
from mim_lightning.stored_config import MAX_DEPTH, validate_config

if TYPE_CHECKING:
    from mim_lightning.losses.objective import Objective
    from mim_lightning.model.matcher import Matcher

Config = dict[str, Any]


def conf_dir() -> str:
    """Return conf/: inside an installed wheel, or at the root of the repository."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return str(installed if installed.is_dir() else package.parents[1] / "conf")


def compose(name: str, overrides: list[str]) -> Config:
    """Return the config that an entry point gets; for tests and notebooks."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
        return to_plain(hydra.compose(name, open_up(present_overrides(overrides, name, warn_of_former_name))), name)


def listed_sections(name: str) -> set[str]:
    """Return the sections that `conf/<name>.yaml` or an option which it chooses has."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
        return {str(section) for section in hydra.compose(name)}


def to_plain(config: DictConfig | Any, name: str = "train") -> Config:
    """Resolve a config into plain containers; what it has under a former name is taken all the same, with a warning.

    Args:
        config: as Hydra composed it.
        name: of the config, the file in conf/.

    Raises:
        ValueError: a mandatory key has no value; names it.
    """
    written: Any = OmegaConf.to_container(config, resolve=False)
    present = to_present(written, name, warn_of_former_name)
    if present != written:
        config = OmegaConf.create(present)
    missing = OmegaConf.missing_keys(config)
    if missing:
        key = sorted(missing)[0]
        raise ValueError(f"{key}: needs a value; give {key}=<value>")
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    named: Config = _with_text_keys(plain)
    place_encoder_values(named, present)
    return named


def _with_text_keys(value: Any) -> Any:
    """Return plain containers with texts as keys, as a file has them: {64: 1.0} of the command line has a number."""
    if isinstance(value, dict):
        return {str(key): _with_text_keys(part) for key, part in value.items()}
    return [_with_text_keys(part) for part in value] if isinstance(value, list) else value


@functools.cache  # once a process: a sweep composes its config for every job
def warn_of_former_name(former: str, present: str) -> None:
    print(f"warning: {former} is now {present}; the former name is accepted until version 0.3", file=sys.stderr)


def save_config(config: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        OmegaConf.save(OmegaConf.create(dict(config)), partial)


def load_config(path: Path) -> Config:
    """Return a config that `save_config` wrote; it was resolved before, and nothing in it is looked up.

    Raises:
        DamagedFileError: it cannot be read; names it.
    """
    with errors_as_damaged_file(path):
        text = path.read_text("utf-8")
        _validate_yaml(text)
        config = yaml.safe_load(text)
        if not isinstance(config, dict):
            raise ValueError("holds no keys")
    return config


def _validate_yaml(text: str) -> None:
    """Raise ValueError if a few lines of YAML expand to gigabytes, or nest so deeply that reading takes hours."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
            raise ValueError(f"line {event.start_mark.line + 1}: a part that stands for another, or nested too deep")


def load_stored_config(path: Path) -> Config:
    """Return the config in a run's folder, only to be read; it may be hostile.

    Raises:
        ValueError: the file is missing, damaged, or holds an interpolation; names file and key.
    """
    return validate_config(load_config(path), path, is_built=False)


def construct(where: str, make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a constructor with options from config; an unknown key is an error that names the section `where`."""
    _validate_options(where, make, options)
    return make(*args, **options)


def build_partial(config: Any, where: str) -> Callable[..., Any]:
    """Instantiate a config with `_partial_: true`; its options are validated now and not when it is called.

    Raises:
        ValueError: as `build`; an option of another kind, or one that is not known; names the key.
    """
    validate_type(where, config, dict)
    made = build(config)
    if isinstance(made, functools.partial):
        _validate_options(where, made.func, made.keywords)
    if not callable(made):
        raise ValueError(f"{where}: give {{_target_: <a class or function>, _partial_: true, ...}}")
    return made


def _validate_options(where: str, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(make).parameters
    known = [name for name in parameters if name not in ("self", "args", "kwargs")]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in options:
        if key not in known and not takes_any:
            close = difflib.get_close_matches(key, known, 1)
            raise ValueError(
                f"no config key '{where}.{key}'; " + (f"did you mean '{close[0]}'?" if close else str(known))
            )
    validate_arguments(make, options, where)


def build(config: Mapping[str, Any] | None, **late: Any) -> Any:
    """Instantiate a config with `_target_`, its parts first; None stays None.

    `late` arguments are objects that no config contains; they complete a config with `_partial_: true`.

    Raises:
        ValueError: the constructor refused a value, or does not know a key.
    """
    if config is None:
        return None
    try:
        made = hydra.utils.instantiate(OmegaConf.create(dict(config)), _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise cause from None
        reason = str(cause or error).splitlines()[0]
        raise ValueError(f"{config.get('_target_', 'config')}: {reason}") from error
    if not late:
        return made
    options = {**made.keywords, **late}
    try:  # before the call: a TypeError in the constructor's own code is a bug, and keeps its call stack
        inspect.signature(made.func).bind(*made.args, **options)
    except TypeError as error:
        raise ValueError(f"{config.get('_target_', 'config')}: {error}") from error
    return made(**late)


def build_each(configs: Mapping[str, Any]) -> dict[str, Any]:
    """Instantiate a dict of configs by name; an entry that is null is switched off."""
    for name, config in configs.items():
        if config is not None and not isinstance(config, Mapping):
            raise ValueError(f"{name}={config}: give {{_target_: <its class>, ...}}, or null to switch it off")
    return {name: build(config) for name, config in configs.items() if config is not None}


def build_matcher(config: Mapping[str, Any], assets: Mapping[str, Mapping[str, str]] | None = None) -> Matcher:
    """Build the towers that own weights, and the matcher around them.

    Args:
        config: a resolved run config; its `model` section is read.
        assets: by tower, from a checkpoint. When given, nothing is looked up or downloaded.
    """
    from mim_lightning.model.adapters import LoraSettings
    from mim_lightning.model.matcher import Matcher
    from mim_lightning.model.tower import Tower

    model = config["model"]
    tied = {name: owner for name, owner in model["tied"].items() if owner is not None}
    towers, fields, prompts = {}, {}, {}
    for name, tower in model["towers"].items():
        if name not in tied:
            if not tower.get("encoder"):
                raise ValueError(
                    f"model.towers.{name}.encoder: is null, the chosen encoder has none of this kind; choose another "
                    "encoder or model (encoder=qwen3_vl and model=joint go together)"
                )
            encoder = _build_encoder(tower["encoder"], assets[name] if assets is not None else None)
            rest = {key: value for key, value in tower.items() if key not in ("encoder", "fields", "prompt")}
            _validate_options(f"model.towers.{name}", Tower, _arguments_of(rest))
            if isinstance(rest.get("lora"), Mapping):
                _validate_options(f"model.towers.{name}.lora", LoraSettings, _arguments_of(rest["lora"]))
            try:
                towers[name] = build({**rest, "_partial_": True}, encoder=encoder)
            except ValueError as error:
                raise ValueError(f"model.towers.{name}: {error}") from error
        elif assets is None:
            _validate_tied(name, tied[name], model["towers"])
        if isinstance(tower, Mapping) and tower.get("fields") is not None:
            validate_type(f"model.towers.{name}.fields", tower["fields"], list)
            fields[name] = tower["fields"]
        if isinstance(tower, Mapping) and tower.get("prompt") is not None:
            validate_type(f"model.towers.{name}.prompt", tower["prompt"], str)
            prompts[name] = str(tower["prompt"])  # a number is a text too
    return Matcher(towers, tied, model["fusions"], fields, prompts)


def _validate_tied(name: str, owner: str, towers: Mapping[str, Any]) -> None:
    """Raise a ValueError if a tied tower is to be trained otherwise than the tower whose weights it uses."""
    own, other = ((towers.get(tower) or {}).get("train") for tower in (name, owner))
    if own not in (None, "full", other):
        raise ValueError(
            f"model.towers.{name}.train={own}: its weights are those of {owner}; give "
            f"model.towers.{owner}.train={own}, or untie it with model.tied.{name}=null"
        )


def _arguments_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without the keys that Hydra obeys."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _build_encoder(config: Mapping[str, Any], assets: Mapping[str, str] | None) -> Any:
    if assets is None:
        return build(config)
    make = {**config, "_partial_": True}
    known = inspect.signature(build(make)).parameters
    # Random weights, and the assets even where there are none: the constructor's own defaults may look elsewhere.
    # As objects: a tokenizer's text may hold what OmegaConf takes for an interpolation.
    late = {name: value for name, value in {"assets": assets, "pretrained": None}.items() if name in known}
    return build(make, **late) if late else build(config)


def build_objective(config: Mapping[str, Any], names: tuple[str, ...], dimension: int | None = None) -> Objective:
    """Build the objective of a run config over the towers and fusions in `names`, with embeddings of a dimension."""
    from mim_lightning.losses.objective import Objective, Pair

    pairs = {
        name: construct(f"model.pairs.{name}", Pair, **pair)
        for name, pair in config["model"]["pairs"].items()
        if pair is not None
    }
    options = dict(config["loss"])
    if isinstance(options.get("grades"), Mapping):
        options["grades"] = build_partial(options["grades"], "loss.grades")
    vectors = [name for name, path in (config["data"].get("vectors") or {}).items() if path is not None]
    for name in vectors:
        if name in names:
            raise ValueError(f"data.vectors.{name}: the model has a tower or fusion of that name; give another one")
        if not any(name in (pair.left, pair.right) for pair in pairs.values()):
            raise ValueError(
                f"data.vectors.{name}: is in no pair; add '+model.pairs.{name}={{left: <tower>, right: {name}}}'"
            )
    known = {"dimension": dimension, "vectors": vectors}
    return construct("loss", Objective, pairs, build(options.pop("function")), names, **known, **options)
