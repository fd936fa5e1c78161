"""The versions of prepared data that a config names: the next one is written, old ones are removed, all are listed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.config import build
from mim_lightning.data_config import build_text_specs
from mim_lightning.io.paths import to_path_or_url
from mim_lightning.run import runs_by_version

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
