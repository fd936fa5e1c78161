"""The versions of prepared data: which a run reads, and, for `prepare`, how they are written, removed and listed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.config import build, load_stored_config
from mim_lightning.data_config import build_text_specs
from mim_lightning.io.paths import to_path_or_url
from mim_lightning.run import Run
from mim_lightning.stored_config import data_versions_of

if TYPE_CHECKING:
    from mim_lightning.data.preparation.prepared import PreparedData
    from mim_lightning.data.versions.change import Change


def write_next_version(change: Change, config: dict[str, Any]) -> PreparedData:
    """Write the next version of the data in `data.folder`, and return them."""
    from mim_lightning.analysis.html.validation_page import write_validation_report
    from mim_lightning.data.preparation.preparation import Validation
    from mim_lightning.data.versions.next_version import change_data

    data = config["data"]
    download = build(((data["source"] or {}).get("download")) or None)
    validation = Validation(build(data["validation"]), build_text_specs(config), write_validation_report)
    folder = to_path_or_url(data["folder"])
    return change_data(folder, change, validation, download=download, num_workers=config["num_workers"])


def show_versions(config: dict[str, Any]) -> None:
    """Remove old versions of the data in `data.folder` if `prune` says so; print those that there are."""
    from mim_lightning.data.versions.pruning import prune_versions
    from mim_lightning.data.versions.version_list import list_versions

    folder = to_path_or_url(config["data"]["folder"])
    if not isinstance(folder, Path):
        raise ValueError(f"data.folder={folder}: versions are listed and removed in a local folder only")
    runs, prune = runs_by_version(Path(config["paths"]["runs"]), folder), config["prune"]
    if prune["keep"] is not None:
        print(f"{folder}: {prune_versions(folder, prune['keep'], runs, is_forced=prune['force'])}")
    for version in list_versions(folder):
        print(f"  {version.describe(runs.get(version.number, ()))}")


def choose_versions(run: Run, data: Mapping[str, Any], is_resumed: bool) -> dict[str, int]:
    """Return the versions of the data that a run reads, by name: a resumed one goes on with those it started with.

    Args:
        data: its section of the config.
        is_resumed: whether it goes on from a checkpoint.
    """
    from mim_lightning.data.preparation.opened_data import find_versions

    newest = find_versions(data)
    if not is_resumed or not run.config_path.exists():
        return newest
    versions = {**newest, **recorded_versions(run, newest)}
    for name, version in versions.items():
        if version != newest[name]:
            print(f"{run.run_id}: goes on with version {version} of the data, the newest is {newest[name]}", flush=True)
    return versions


def recorded_versions(run: Run, names: Iterable[str]) -> dict[str, int]:
    """Return the versions of the data that a run started with, by name."""
    stored = data_versions_of(load_stored_config(run.config_path))
    return {name: stored.get(name, 1) for name in names}


def runs_by_version(runs: Path, folder: Path) -> dict[int, list[str]]:
    """Return the ids of the runs that read each version of the prepared data in a folder.

    Args:
        runs: the folder of all runs; those whose config cannot be read are left out.
    """
    found: dict[int, list[str]] = {}
    for path in sorted(runs.glob("*/config.yaml")):
        with suppress(OSError, ValueError):
            config = load_stored_config(path)
            data, versions = config.get("data") or {}, data_versions_of(config)
            others = {"distractors": data.get("distractors")}
            others |= {name: (entry or {}).get("folder") for name, entry in (data.get("mixture") or {}).items()}
            for name, place in {"main": data.get("folder"), **others}.items():
                if place and Path(place).absolute().resolve() == folder.absolute().resolve():
                    readers = found.setdefault(versions.get(name, 1), [])
                    if path.parent.name not in readers:
                        readers.append(path.parent.name)
    return found


def describe_newer_versions(run: Run, data: Mapping[str, Any]) -> str:
    """Return in one line which data of a finished run have a newer version now, "" if none have."""
    from mim_lightning.data.preparation.opened_data import find_versions

    newest = find_versions(data)
    recorded = recorded_versions(run, newest) if run.config_path.exists() else newest
    changed = [name for name in newest if newest[name] > recorded[name]]
    if not changed:
        return ""
    name = changed[0]
    key = "data.version" if list(newest) == [name] else f"data.version.{name}"
    return (
        f"the run read version {recorded[name]} of the data{'' if name == 'main' else f' {name}'}, the newest is "
        f"{newest[name]}; {key}={newest[name]} trains another run on it"
    )
