"""The preparation of a data set as conf/prepare.yaml describes it: by processes here, by Ray, or validated alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.config import build
from mim_lightning.data_config import build_preparation, build_text_specs

# other imports are in functions: worker processes import neither torch nor pages
if TYPE_CHECKING:
    from mim_lightning.data.preparation.prepared import PreparedData

ENGINES = ("processes", "ray")


def prepare_set(config: dict[str, Any]) -> PreparedData | Path:
    """Write the shards of `data`, or validate its rows alone; existing data are compared with their checksums.

    Args:
        config: as of conf/prepare.yaml.

    Returns:
        the data, or with `validate_only` the folder of the report.

    Raises:
        ValueError: there is no source, the engine cannot do what the config says, or rows are invalid.
    """
    if config["data"]["source"] is None:
        raise ValueError("data.source: nothing to prepare from; choose a set with a source, such as data=manifest")
    from mim_lightning.analysis.html.validation_page import write_validation_report
    from mim_lightning.data.preparation.preparation import prepare_data, validate_only

    parts = build_preparation(config["data"], config["num_workers"])
    is_ray, overwrite = config["engine"] == "ray" and not config["validate_only"], config["overwrite"]
    if is_ray and parts.variants is not None:
        raise ValueError("engine=ray: no process sees all products of a style; data.compose needs engine=processes")
    specs = None if is_ray else build_text_specs(config)
    if not is_ray and not isinstance(parts.folder, Path):
        raise ValueError(f"data.folder={parts.folder}: engine=processes writes to a local folder; or give engine=ray")
    if config["validate_only"]:
        return validate_only(parts, partial(write_validation_report, brief=False), specs)
    if is_ray:
        from mim_lightning.data.preparation.ray_engine import prepare_with_ray

        settings = parts.settings, build(config["ray"]), parts.strictness, parts.splits
        return prepare_with_ray(parts.source, parts.folder, *settings, overwrite=overwrite)
    return prepare_data(parts, write_validation_report, specs=specs, overwrite=overwrite, is_compared=True)
