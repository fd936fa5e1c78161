"""python -m mim_lightning.prepare data=<your set>: write the shards of a data set, here or on a Ray cluster.

Training does this by itself if the shards do not exist; here one can also validate only, write again, or verify.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.callable_module import make_callable
from mim_lightning.cli import run_entry_point
from mim_lightning.config import build
from mim_lightning.data_config import build_change, build_preparation, build_text_specs
from mim_lightning.expected_types import validate_type
from mim_lightning.prepared_versions import show_versions, write_next_version

# other imports are in functions: mistakes are reported at once, and worker processes import neither torch nor pages
if TYPE_CHECKING:
    from mim_lightning.data.preparation.preparation import Preparation

ENGINES = ("processes", "ray")


def main() -> None:
    run_entry_point("prepare", prepare, resumes=True)


def prepare(config: dict[str, Any]) -> None:
    """Write the shards of `data` and print what they contain; or only validate or verify."""
    if config["engine"] not in ENGINES:
        raise ValueError(f"engine={config['engine']}: give {' or '.join(ENGINES)}")
    for key in ("overwrite", "validate_only", "verify", "list_versions"):
        validate_type(key, config[key], bool)
    if (config["num_workers"] or 0) < 0:
        raise ValueError(f"num_workers={config['num_workers']}: must not be negative")
    if change := build_change(config):
        prepared = write_next_version(change, config)
        print(prepared.summary(prepared.describe()["settings"]["train_split"]))
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
    if is_ray and parts.variants is not None:
        raise ValueError("engine=ray: no process sees all products of a style; data.compose needs engine=processes")
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


make_callable(__name__, prepare)

if __name__ == "__main__":
    main()
