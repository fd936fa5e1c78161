"""python -m mim_lightning.prepare data=<your set>: write the shards of a data set, on this machine or a Ray cluster.

Training does this by itself if the shards do not exist. On its own it also validates without writing, writes everything
again, and verifies existing shards.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.cli import run_entry_point
from mim_lightning.config import build
from mim_lightning.data_config import build_change, build_preparation, build_text_specs

# other imports are in functions: mistakes are reported at once, and worker processes import neither torch nor pages
if TYPE_CHECKING:
    from mim_lightning.data.preparation.preparation import Preparation
    from mim_lightning.data.versions.change import Change

ENGINES = ("processes", "ray")


def main() -> None:
    run_entry_point("prepare", prepare, resumes=True)


def prepare(config: dict[str, Any]) -> None:
    """Write the shards of `data` and print what they contain; or only validate or verify."""
    if config["engine"] not in ENGINES:
        raise ValueError(f"engine={config['engine']}: give {' or '.join(ENGINES)}")
    for key in ("overwrite", "validate_only", "verify", "list_versions"):
        if not isinstance(config[key], bool):
            raise ValueError(f"{key}={config[key]}: give true or false")
    if (config["num_workers"] or 0) < 0:
        raise ValueError(f"num_workers={config['num_workers']}: must not be negative")
    if change := build_change(config):
        change_prepared(change, config)
        return
    if config["list_versions"] or config["prune"]["keep"] is not None:
        show_versions(config)
        return
    if config["verify"]:
        from mim_lightning.data.preparation.prepared import open_prepared

        print(open_prepared(config["data"]["folder"]).verify(print))
        return
    if config["data"]["source"] is None:
        raise ValueError("data.source: nothing to prepare from; choose a set with a source, such as data=manifest")
    write(build_preparation(config["data"], config["num_workers"]), config)


def write(parts: Preparation, config: dict[str, Any]) -> None:
    """Validate, and write unless `validate_only`; existing data are compared with their checksums."""
    from mim_lightning.analysis.html.validation_page import write_validation_report
    from mim_lightning.data.preparation.preparation import prepare_data, validate_only

    is_ray, overwrite = config["engine"] == "ray" and not config["validate_only"], config["overwrite"]
    specs = None if is_ray else build_text_specs(config)
    if not is_ray and not isinstance(parts.folder, Path):
        raise ValueError(f"data.folder={parts.folder}: engine=processes writes to a local folder; or give engine=ray")
    if config["validate_only"]:
        print(f"report: {validate_only(parts, partial(write_validation_report, brief=False), specs)}")
        return
    if is_ray:
        from mim_lightning.data.preparation.ray_engine import prepare_with_ray

        settings = parts.settings, build(config["ray"]), parts.strictness, parts.splits
        prepared = prepare_with_ray(parts.source, parts.folder, *settings, overwrite=overwrite)
    else:
        prepared = prepare_data(parts, write_validation_report, specs=specs, overwrite=overwrite, is_compared=True)
    print(prepared.summary(parts.settings.train_split))


def change_prepared(change: Change, config: dict[str, Any]) -> None:
    """Write the next version of the data in `data.folder`."""
    from mim_lightning.analysis.html.validation_page import write_validation_report
    from mim_lightning.data.preparation.preparation import Validation
    from mim_lightning.data.versions.next_version import change_data
    from mim_lightning.io.paths import to_path_or_url

    data = config["data"]
    download = build(((data["source"] or {}).get("download")) or None)
    validation = Validation(build(data["validation"]), build_text_specs(config), write_validation_report)
    folder = to_path_or_url(data["folder"])
    prepared = change_data(folder, change, validation, download=download, num_workers=config["num_workers"])
    print(prepared.summary(prepared.describe()["settings"]["train_split"]))


def show_versions(config: dict[str, Any]) -> None:
    """Remove old versions of the data in `data.folder` if `prune` says so; print those that there are."""
    from mim_lightning.data.versions.pruning import prune_versions
    from mim_lightning.data.versions.version_list import list_versions
    from mim_lightning.io.paths import to_path_or_url
    from mim_lightning.run import runs_by_version

    folder = to_path_or_url(config["data"]["folder"])
    if not isinstance(folder, Path):
        raise ValueError(f"data.folder={folder}: versions are listed and removed in a local folder only")
    runs, prune = runs_by_version(Path(config["paths"]["runs"]), folder), config["prune"]
    if prune["keep"] is not None:
        print(f"{folder}: {prune_versions(folder, prune['keep'], runs, is_forced=prune['force'])}")
    for version in list_versions(folder):
        print(f"  {version.describe(runs.get(version.number, ()))}")


if __name__ == "__main__":
    main()
