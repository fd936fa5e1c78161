"""Checkpoints: a matcher with everything needed to rebuild it, without trainer, network or pickled code.

`describe_checkpoint` adds it to Lightning's checkpoint and `load_matcher` rebuilds it; `warm_start` copies weights of
towers into another matcher, `store_fusions` changes the fusions in a file. Resuming is elsewhere:
`run.find_resumable` chooses the file, `training.fit` hands it to Lightning, and `StreamLoader.load_state_dict` restores
the position in the data.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim_lightning.artifact_paths import is_sharded_checkpoint, validate_checkpoint
from mim_lightning.config import build_matcher
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import DamagedFileError, errors_as_damaged_file
from mim_lightning.io.digest import has_same_scheme
from mim_lightning.model.adapters import plain_names
from mim_lightning.model.compatibility import CrossResult, Galleries, describe_galleries, parse_galleries
from mim_lightning.model.fingerprint import fingerprint
from mim_lightning.model.fusion import Fusions, as_fusion, describe_fusions
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.sharded_checkpoint import (
    change_meta,
    read_meta,
    read_sharded,
    verify_sharded,
)
from mim_lightning.model.tower import FULL, LORA
from mim_lightning.stored_config import errors_as_value_error, validate_assets, validate_config

SECTION = "mim_lightning"  # key of this project in the checkpoint
GALLERIES = "galleries"  # key in the section, of a model whose queries were measured against those of former models
PREFIX = "matcher."  # of the matcher's tensors in Lightning's state dict
TOWERS = "towers"  # the other tensors of a matcher are its fusions'


@dataclass(frozen=True)
class TrainedMatcher:
    """A matcher with the resolved config of its run; its weights are float32 in memory, rounded to `precision`."""

    matcher: Matcher
    config: dict[str, Any]
    fingerprint: str
    precision: str = "float32"
    galleries: Galleries = field(default_factory=dict)  # of former models, which its queries were measured against

    def merged(self) -> TrainedMatcher:
        """Return it with the adapters of its towers merged into their weights, in place; the fingerprint stays.

        Embeddings differ by rounding alone, so what was made with the adapters fits.
        """
        towers = dict(self.config["model"]["towers"])
        for name in self.matcher.towers:
            if self.matcher.tower(name).train_mode == LORA:
                self.matcher.tower(name).merge_adapters()
                towers[name] = {**towers[name], "train": FULL}
        return replace(self, config={**self.config, "model": {**self.config["model"], "towers": towers}})


@dataclass(frozen=True)
class WarmStart:
    """Result of `warm_start`: names of tensors."""

    loaded: tuple[str, ...]
    fresh: tuple[str, ...]  # of the new matcher, not in the checkpoint
    unused: tuple[str, ...]  # of the checkpoint, not in the new matcher

    def describe(self) -> str:
        lines = [f"init_from: {len(self.loaded)} tensors loaded into {', '.join(_towers(self.loaded)) or 'nothing'}"]
        for label, names in (
            ("not in the checkpoint, newly initialized", self.fresh),
            ("of the checkpoint, unused", self.unused),
        ):
            if names:
                lines.append(f"init_from: {len(names)} tensors {label}: {', '.join(_towers(names))}")
        return "\n".join(lines)


def describe_checkpoint(
    matcher: Matcher, config: Mapping[str, Any], state: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """Return what a checkpoint stores in addition to tensors, in plain containers.

    Args:
        matcher: the model.
        config: of its run.
        state: the tensors that the checkpoint stores, if they are not those of the matcher at present.
    """
    assets = {name: matcher.tower(name).encoder.export_assets() for name in matcher.towers}
    return {"config": dict(config), "assets": assets, "fingerprint": fingerprint(matcher, state)}


def load_matcher(path: str | Path, like: str | None = None) -> TrainedMatcher:
    """Rebuild the matcher of a checkpoint, in evaluation mode on the CPU.

    Args:
        path: the file.
        like: a fingerprint to compare with: the returned one is computed as that one was; None: as in the file.

    Raises:
        ValueError: no such file, not a checkpoint of this project, damaged, or it names code that is not trusted.
    """
    content = _read(path)
    section, state = content[SECTION], state_of(content)
    with errors_as_value_error(path):
        matcher = build_matcher(section["config"], assets=section["assets"])
    load_strictly(matcher, state, path)
    found = fingerprint(matcher, like=section["fingerprint"])
    if found != section["fingerprint"]:
        raise ValueError(f"{path}: fingerprint {found}, {section['fingerprint']} in the file: it was changed")
    if like is not None and not has_same_scheme(found, like):
        found = fingerprint(matcher, like=like)
    try:
        galleries = parse_galleries(section.get(GALLERIES))
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedFileError(path, str(error)) from error
    return TrainedMatcher(matcher.eval(), section["config"], found, galleries=galleries)


def stored_fingerprint(path: Path) -> str:
    """Return the fingerprint in a checkpoint of this project, without reading its weights."""
    return str(_read_facts(path)[SECTION]["fingerprint"])


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the resolved config of the run that wrote a checkpoint, without reading its weights.

    Raises:
        ValueError: as `load_matcher`, but for weights that are damaged.
    """
    config: dict[str, Any] = _read(path, with_weights=False)[SECTION]["config"]
    return config


def verify_checkpoint(path: Path) -> None:
    """Read a whole checkpoint and verify its checksums.

    Raises:
        DamagedFileError: not a checkpoint of this project, or changed since it was written.
    """
    if path.is_dir():
        verify_sharded(path)
        if SECTION not in read_meta(path):
            raise DamagedFileError(path, "not a checkpoint of mim_lightning")
        return
    with errors_as_damaged_file(path):
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
        if damaged is not None:
            raise DamagedFileError(path, f"the checksum of {damaged} does not match")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(content, dict) or SECTION not in content:
            raise DamagedFileError(path, "not a checkpoint of mim_lightning")


def read_progress(path: Path) -> dict[str, int]:
    """Return the epoch and step of a checkpoint, without its tensors."""
    content = _read_facts(path)
    return {"epoch": content["epoch"], "step": content["global_step"]}


def _read_facts(path: Path) -> dict[str, Any]:
    """Return what a checkpoint has besides tensors, which stay on the disk."""
    if is_sharded_checkpoint(path):
        return read_meta(path)
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content


def warm_start(matcher: Matcher, objective: nn.Module, path: str | Path) -> WarmStart:
    """Load the weights of every tower in the checkpoint, tied or not, and the learned scale.

    A tower takes the weights that its name used in the checkpoint: the two encoders of a 3-tower model initialize all
    towers of a 4-tower model, and an untied tower starts from the shared weights. A tower with adapters starts from
    those of the checkpoint, if they have the same shapes and scale, else from its merged weights with new adapters; one
    without adapters from weights into which those of the checkpoint are merged. A fusion starts from the checkpoint's
    of its name if that has all its tensors, else new.

    Raises:
        ValueError: the checkpoint has none of these towers, or a tensor of another shape; names both shapes.
    """
    content = _read(path)
    source = plain = state_of(content)
    scales: dict[str, float | None] = {}
    if any(not plain_names(name) for name in source):  # tensors of adapters
        trained = load_matcher(path)
        scales = {name: trained.matcher.tower(name).adapter_scale for name in trained.matcher.towers}
        plain = trained.merged().matcher.state_dict()
    tied = content[SECTION]["config"]["model"].get("tied") or {}
    wanted = matcher.state_dict()
    loaded: dict[str, Tensor] = {}
    used: set[str] = set()

    def has_all(pairs: Mapping[str, str]) -> bool:
        return all(other in source and source[other].shape == wanted[name].shape for name, other in pairs.items())

    for fusion in matcher.fusions:
        names = {name: name for name in wanted if name.startswith(f"fusions.{fusion}.")}
        if has_all(names):  # one of other towers or of another kind starts new: its parts were trained together
            loaded |= {name: source[name] for name in names}
            used |= {*names}
    for tower in matcher.towers:
        owner = tied.get(tower) or tower
        start, source_start = f"{TOWERS}.{tower}.", f"{TOWERS}.{owner}."
        names = {name: source_start + name.removeprefix(start) for name in wanted if name.startswith(start)}
        is_same = has_all(names) and scales.get(owner) == matcher.tower(tower).adapter_scale
        state = source if is_same else plain
        for name, other in names.items():
            found = next((choice for choice in (other, *plain_names(other)) if choice in state), None)
            if found is None:
                continue
            if state[found].shape != wanted[name].shape:
                raise ValueError(
                    f"{path}: '{found}' has shape {tuple(state[found].shape)}, "
                    f"this model's has {tuple(wanted[name].shape)}"
                )
            loaded[name] = state[found]
            used |= {found, *plain_names(found)}
    if not any(name.startswith(f"{TOWERS}.") for name in loaded):
        raise ValueError(f"{path}: has no tower of this model: nothing to start from")
    matcher.load_state_dict(loaded, strict=False)
    objective.load_state_dict(state_of(content, "objective."), strict=False)
    fresh = tuple(name for name in wanted if name not in loaded)
    return WarmStart(tuple(loaded), fresh, tuple(name for name in plain if name not in used))


def store_fusions(path: Path, fusions: Fusions, expected: str) -> Path:
    """Write a copy of a checkpoint with other fusions beside it, as `<name>.fused.ckpt`.

    The fusions are part of the fingerprint, so an index of the former checkpoint does not fit the new one.

    Args:
        path: the checkpoint.
        fusions: by name, to take the place of those of the checkpoint.
        expected: fingerprint of the model for which they were chosen.

    Raises:
        ValueError: no checkpoint, or of another model; a fusion that it does not have.
    """
    loaded = load_matcher(path, like=expected)
    if loaded.fingerprint != expected:
        raise ValueError(f"{path}: is model {loaded.fingerprint}, the weights were chosen for {expected}")
    known = loaded.matcher.fusions
    for name in fusions:
        if name not in known:
            raise ValueError(f"{path}: has no fusion '{name}'; there are {list(known)}")
    content = _read(path)
    for name, given in fusions.items():
        loaded.matcher.replace_fusion(as_fusion(name, given, loaded.matcher.dimension))
    described = describe_fusions(loaded.matcher.fusions)
    state = {name: value for name, value in content["state_dict"].items() if not name.startswith(f"{PREFIX}fusions.")}
    fused = {name: value for name, value in loaded.matcher.state_dict().items() if name.startswith("fusions.")}
    content["state_dict"] = state | {f"{PREFIX}{name}": value for name, value in fused.items()}
    config = {**loaded.config, "model": {**loaded.config["model"], "fusions": described}}
    content[SECTION] = describe_checkpoint(loaded.matcher, config)
    target = path.with_suffix(f".fused{path.suffix}")
    with atomic_write(target) as partial:
        torch.save(content, partial)
    return target


def store_gallery(path: Path, former: str, results: tuple[CrossResult, ...], expected: str) -> None:
    """Write into a checkpoint what its queries find in the gallery of a former model.

    Args:
        former: fingerprint of the former model.
        expected: fingerprint of the model that was measured.

    Raises:
        ValueError: the checkpoint is of another model now.
    """

    def add(content: dict[str, Any]) -> None:
        section = content[SECTION]
        if section["fingerprint"] != expected:
            raise ValueError(
                f"{path}: is model {section['fingerprint']} now, {expected} was measured; evaluate it again"
            )
        section[GALLERIES] = {**section.get(GALLERIES, {}), **describe_galleries({former: results})}

    if is_sharded_checkpoint(path):
        change_meta(path, add)
        return
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    add(content)
    with atomic_write(path) as partial:
        torch.save(content, partial)


def _towers(names: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(".".join(name.split(".")[:3]) for name in names))


def _read(path: str | Path, with_weights: bool = True) -> dict[str, Any]:
    validate_checkpoint(path)
    if is_sharded_checkpoint(path):
        content = read_sharded(path) if with_weights else {"state_dict": {}, **read_meta(Path(path))}
    else:
        with errors_as_damaged_file(Path(path)):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=not with_weights)
            except pickle.UnpicklingError as error:  # whose message advises to run the code
                raise DamagedFileError(path, "holds code, or is no checkpoint of torch") from error
    if not isinstance(content, dict) or SECTION not in content:
        raise ValueError(f"{path}: not a checkpoint of mim_lightning")
    section, state = content[SECTION], content.get("state_dict")
    facts = section if isinstance(section, dict) else {}
    if not {"config", "assets"} <= facts.keys() or not isinstance(facts.get("fingerprint"), str):
        raise ValueError(f"{path}: damaged (lacks its model's config, assets or fingerprint)")
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: damaged (its state_dict holds no tensors by name)")
    section |= {"config": validate_config(section["config"], path), "assets": validate_assets(section["assets"], path)}
    return content


def state_of(content: Mapping[str, Any], prefix: str = PREFIX) -> dict[str, Tensor]:
    """Return the tensors of a part of a checkpoint, by default the matcher, under the names of that part."""
    state = content["state_dict"]
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def load_strictly(matcher: Matcher, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load a state dict.

    Raises:
        ValueError: a tensor that is missing, too many, or of another shape; names it.
    """
    wanted = matcher.state_dict()
    for name in sorted({*wanted, *state}):
        here, there = wanted.get(name), state.get(name)
        if here is None or there is None:
            raise ValueError(f"{path}: tensor '{name}' is {'not in the model' if here is None else 'missing'}")
        if here.shape != there.shape:
            raise ValueError(f"{path}: '{name}' has shape {tuple(there.shape)}, the model's {tuple(here.shape)}")
        is_dense = there.layout == torch.strided and not there.is_meta and not there.is_quantized
        if not is_dense or here.is_floating_point() != there.is_floating_point():
            kind = there.dtype if is_dense else f"{there.dtype}, sparse, quantized or without values"
            raise ValueError(f"{path}: '{name}' holds {kind}, the model's {here.dtype}")
    matcher.load_state_dict(state)
