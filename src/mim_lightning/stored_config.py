"""Validation of a config that was read from a checkpoint, an export, a record or a run folder, which may be hostile.

Building from a validated config runs only classes of this project and of packages that the user trusts: it has no
interpolation, and in each place only the classes that fit there. Validate every config read from a file before
anything is built or opened. A config composed from the command line is the user's own and needs none of this.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mim_lightning.display.text import plain
from mim_lightning.former_names import to_present
from mim_lightning.io.damaged_file import FileError, errors_as_damaged_file
from mim_lightning.io.file_name import validate_file_name

DATA_VERSIONS = "data_versions"  # key of the section `run`
TRUSTED_PACKAGES = "MIM_TRUSTED_PACKAGES"  # environment variable: packages, by comma, whose classes a file may name
OWN = "mim_lightning."
# place, with * for any name -> what may be built there: `<package>.<what it exports>`, without `mim_lightning.`
ROLES = {
    "model.lora": ("model.LoraSettings",),
    "model.towers.*": ("model.Tower",),
    "model.towers.*.lora": ("model.LoraSettings",),
    "model.towers.*.encoder": (
        *("encoders.TinyImage", "encoders.TinyText", "encoders.TimmImage"),
        *("encoders.OpenClipImage", "encoders.OpenClipText"),
        *("encoders.HfText", "encoders.HfImageText"),
    ),
    "data": ("lit.MatchDataModule",),
    "data.source": (
        *("data.ManifestSource", "data.SyntheticSource"),
        *("data.GrocerySource", "data.HuggingFaceSource"),
        *("data.WebDatasetSource", "data.ClicksSource"),
    ),
    "data.source.download": ("data.DownloadSettings",),
    "data.shards": ("data.ShardSettings",),
    "data.validation": ("data.ValidationSettings",),
    "data.cache": ("data.CacheSettings",),
    "data.feature_cache": ("data.FeatureCacheSettings",),
    "data.splits": ("data.GivenSplits", "data.ProductDisjointSplits"),
    "data.sampling": (
        *("data.ShuffledSettings", "data.GroupedSettings", "data.WeightedSettings"),
        "data.HardNegativeSettings",
    ),
    "data.sampling.mining": ("data.MiningSettings",),
    "data.augment": ("data.Augment",),
    "callbacks.retrieval_eval": ("lit.RetrievalEval",),
}
# nothing else of a checkpoint or an export is ever built, or given to what is
BUILT = ("model", "data", "callbacks.retrieval_eval", "directions", "monitor", "trainer.precision")
SECTIONS = ("model", "data", "callbacks", "model.towers", "model.tied", "model.fusions", "directions", "trainer", "run")
DATA_KEYS = {"name": str, "folder": str, "val_split": str, "batch_size": int, "eval_batch_size": int, "seed": int}
DATA_PARTS = ("source", "shards", "splits", "num_workers")
NEEDS_TARGET = ("model.towers.*", "model.towers.*.encoder")
DOWNLOAD, PRIVATE = "data.source.download", "private_addresses"  # a switch that a file does not turn on
PARTIAL = "_partial_"  # what a data section holds besides: its input specs come later
MAX_DEPTH, MAX_VALUES = 32, 100_000
_INSTRUCTION = re.compile(r"_[a-z]+_")  # keys that Hydra obeys: _target_, _args_, _recursive_ ...
_Key = tuple[str, ...]


class StoredConfigError(FileError):
    """A value in a file that is not taken from a file.

    Attributes:
        path: of the file.
        key: of the value, dotted; "" for the whole.
    """

    def __init__(self, path: Path | str, key: str, reason: str) -> None:
        said = f"{key}{': ' if key else ''}{reason}"  # key and value may be hostile
        super().__init__(f"{path}: {plain(said, 500)}")
        self.path, self.key = path, key


def validate_config(config: Any, path: Path | str, is_built: bool = True) -> dict[str, Any]:
    """Return a copy, in plain containers, of a config that was read from a file.

    Images at private addresses are for the reader's own command line to allow: the copy does not.

    Args:
        config: what the file holds.
        path: of the file.
        is_built: whether a model or data may be built from it; otherwise it is only read, and may name any class.

    Raises:
        StoredConfigError: an interpolation, something that is not a plain value, or a class that does not fit in its
            place; names file and key.
    """
    plain = _Reader(path).read(config, ())
    if not isinstance(plain, dict):
        raise StoredConfigError(path, "", f"holds {_kind(config)} for a config")
    plain = to_present(plain)
    for place in SECTIONS if is_built else ():
        part = _part(plain, place)
        if not isinstance(part, dict) and (part is not None or place in SECTIONS[:3]):
            raise StoredConfigError(path, place, f"is {part!r}; a section of keys belongs there")
    for place in BUILT if is_built else ():
        _validate_built(_part(plain, place), tuple(place.split(".")), path)
    download = _part(plain, DOWNLOAD) if is_built else None
    if isinstance(download, dict) and download.get(PRIVATE):
        download[PRIVATE] = False
    return plain


def validate_assets(assets: Any, path: Path | str) -> dict[str, dict[str, str]]:
    """Return the assets of encoders, by tower, that were read from a file: texts by plain file names.

    Raises:
        ValueError: something else; names the file.
    """
    if not isinstance(assets, Mapping):
        raise StoredConfigError(path, "assets", f"holds {_kind(assets)}, not files by tower")
    for tower, files in assets.items():
        where = f"{path}: assets of tower {tower!r}"
        if not isinstance(tower, str) or not tower.isidentifier() or not isinstance(files, Mapping):
            raise StoredConfigError(path, f"assets of {tower!r}", "are no files of a tower")
        for name, text in files.items():
            validate_file_name(name, where)
            if not isinstance(text, str):
                raise ValueError(f"{where}: {name} holds {_kind(text)}, not a text")
            if name.endswith(".json"):
                with errors_as_damaged_file(f"{path}, {tower}/{name}"):
                    if not isinstance(json.loads(text), dict):
                        raise ValueError("holds no keys")
    return {tower: dict(files) for tower, files in assets.items()}


def with_data_versions(config: Mapping[str, Any], versions: Mapping[str, int]) -> dict[str, Any]:
    """Return a run's config with the versions of its data by name, of those that are not the first."""
    run = {key: value for key, value in config["run"].items() if key != DATA_VERSIONS}
    later = {name: version for name, version in versions.items() if version != 1}
    return {**config, "run": {**run, DATA_VERSIONS: later} if later else run}


def data_versions_of(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the versions of the data that a run read, by name; of those left out it read the first."""
    stored = (config.get("run") or {}).get(DATA_VERSIONS)
    return {str(name): int(version) for name, version in stored.items()} if isinstance(stored, Mapping) else {}


def data_of(config: Mapping[str, Any], path: Path | str) -> dict[str, Any]:
    """Return the data section of a config that `validate_config` has seen, for the data to be opened as the file says.

    Raises:
        StoredConfigError: a key that opening needs is missing, or holds something else; names it.
    """
    data = config.get("data") or {}
    for key, kind in DATA_KEYS.items():
        if not isinstance(data.get(key), kind):
            raise StoredConfigError(path, f"data.{key}", f"is {data.get(key)!r}; name other data with data=...")
    for key in DATA_PARTS:
        if key not in data:
            raise StoredConfigError(path, f"data.{key}", "is missing; name other data with data=...")
    return data


@contextmanager
def errors_as_value_error(path: Path | str) -> Iterator[None]:
    """Name the file in whatever a constructor says of values that the file gave it."""
    try:
        yield
    except StoredConfigError:
        raise
    except Exception as error:  # our constructors and the vendors' raise any kind over values they never expected
        reason = " ".join(str(error).split())[:300]
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{path}: makes no model ({kind}{reason})") from error


class _Reader:
    """Copies plain values, within bounds: a pickled list may hold itself, and a small file a billion values."""

    def __init__(self, path: Path | str) -> None:
        self.path, self.num_left = path, MAX_VALUES

    def read(self, value: Any, key: _Key) -> Any:
        self.num_left -= 1
        if len(key) > MAX_DEPTH or self.num_left < 0:
            raise StoredConfigError(self.path, ".".join(key[:4]), "is nested too deep, or too large, for a config")
        if isinstance(value, str):
            return self._text(value, key)
        if value is None or type(value) in (bool, int, float):
            return value
        if type(value) in (list, tuple):
            return [self.read(part, (*key, str(idx))) for idx, part in enumerate(value)]
        if type(value) in (dict, OrderedDict):
            return {self._name(name, key): self.read(part, (*key, str(name))) for name, part in value.items()}
        raise StoredConfigError(self.path, ".".join(key), f"holds {_kind(value)}; a config has texts and numbers")

    def _name(self, name: Any, key: _Key) -> str:
        if not isinstance(name, str):
            raise StoredConfigError(self.path, ".".join(key), f"has the key {name!r}, which is no text")
        return self._text(name, (*key, name))

    def _text(self, text: str, key: _Key) -> str:
        if "${" in text:
            reason = "holds '${': in a file nothing is looked up or computed; write the value itself"
            raise StoredConfigError(self.path, ".".join(key), reason)
        return str(text)


def _validate_built(value: Any, key: _Key, path: Path | str) -> None:
    """Raise a StoredConfigError for a class in a place where it does not fit."""
    place = _role_of(key)
    if place is None and isinstance(value, dict):
        for name in value:
            if _INSTRUCTION.fullmatch(name):
                target = value.get("_target_")
                wish = f"wants to build {target!r}" if name == "_target_" else f"has the key {name}"
                raise StoredConfigError(path, ".".join(key), f"{wish}; nothing is built here")
    elif place is not None:
        _validate_role(value, key, place, path)
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        _validate_built(part, (*key, str(name)), path)


def _validate_role(value: Any, key: _Key, place: str, path: Path | str) -> None:
    dotted, choices = ".".join(key), [OWN + name for name in ROLES[place]]
    if not isinstance(value, dict):
        if value is not None or place in NEEDS_TARGET:
            raise StoredConfigError(path, dotted, f"is {value!r}; give _target_ and arguments, as {choices[0]}")
        return
    for name in value:
        if _INSTRUCTION.fullmatch(name) and not (
            name == "_target_" or (name == PARTIAL and place == "data" and value[name] is True)
        ):
            raise StoredConfigError(path, dotted, f"has the key {name}, which a file may not give")
    target = value.get("_target_")
    try:
        if target in choices or (isinstance(target, str) and _is_trusted(target, place)):
            return
    except ImportError as error:
        raise StoredConfigError(path, dotted, f"'{target}' cannot be imported ({error})") from error
    if target is None:
        raise StoredConfigError(path, dotted, f"has no _target_; here it may be {', '.join(choices)}")
    if isinstance(target, str) and target.startswith(OWN):
        raise StoredConfigError(path, dotted, f"wants to build '{target}'; here it may be {', '.join(choices)}")
    reason = f"wants to build {target!r}; if you trust the file, set {TRUSTED_PACKAGES}=<package>"
    raise StoredConfigError(path, dotted, reason)


def _is_trusted(target: str, place: str) -> bool:
    """Is it a class that a package which the reader trusts has itself?

    The package's name is not enough: a module holds what it imports, and `<module>.os.system` would be found.
    """
    module, _, name = target.rpartition(".")
    package = module.partition(".")[0]
    trusted = {part.strip() for part in os.environ.get(TRUSTED_PACKAGES, "").split(",")}
    if package not in trusted or f"{package}." == OWN or not all(map(str.isidentifier, target.split("."))):
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        # a machine that serves need not have what the data came from: there it cannot be built either
        if error.name != package or place in NEEDS_TARGET:
            raise
        return True
    return isinstance(found, type) and found.__module__.partition(".")[0] in trusted


def _role_of(key: _Key) -> str | None:
    for place in ROLES:
        parts = place.split(".")
        if len(parts) == len(key) and all(part in ("*", name) for part, name in zip(parts, key, strict=True)):
            return place
    return None


def _part(config: Any, place: str) -> Any:
    for name in place.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
