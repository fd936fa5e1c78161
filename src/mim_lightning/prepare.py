"""python -m mim_lightning.prepare data=<your set>: tables to shards, on this machine or on a cluster.

Training does this by itself when the shards are missing. Run it alone where the images are, to validate without
writing, to write the shards again, or to verify existing ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.cli import run_entry_point
from mim_lightning.config import build, build_preparation
from mim_lightning.display.text import plain
from mim_lightning.fields import TEXT_FIELDS

# imports in functions: errors in the command line are reported at once, and the processes that write, which import
# this module too, need neither torch nor HTML pages
if TYPE_CHECKING:
    from mim_lightning.data.preparation.prepared import PreparedData
    from mim_lightning.io.paths import PathOrUrl
    from mim_lightning.types import InputSpec

ENGINES = ("processes", "ray")


def main() -> None:
    run_entry_point("prepare", prepare, resumes=True)


def prepare(config: dict[str, Any]) -> None:
    """Write the shards of `data` and print what they contain; or only validate or verify."""
    data = config["data"]
    if config["engine"] not in ENGINES:
        raise ValueError(f"engine={config['engine']}: give {' or '.join(ENGINES)}")
    for key in ("overwrite", "validate_only", "verify"):
        if not isinstance(config[key], bool):
            raise ValueError(f"{key}={config[key]}: give true or false")
    if (config["num_workers"] or 0) < 0:
        raise ValueError(f"num_workers={config['num_workers']}: must not be negative")
    if config["verify"]:
        verify(data["folder"])
        return
    if data["source"] is None:
        raise ValueError("data.source: nothing to prepare from; choose a set with a source, such as data=manifest")
    if config["validate_only"]:
        check(data, _text_specs(config))
        return
    prepared = prepare_on_cluster(config) if config["engine"] == "ray" else prepare_here(config)
    describe(prepared, data["shards"]["train_split"])


def describe(prepared: PreparedData, train_split: str) -> None:
    """Print what prepared data contain."""
    print(f"{prepared.folder}\n  catalogue: {len(prepared.catalogue())} rows")
    splits = prepared.splits()
    for split in splits:
        use = "triples or quadruples to train on" if split == train_split else "queries"
        print(f"  {plain(split)}: {len(prepared.queries(split))} {use}")
    if splits and train_split not in splits:
        print(f"  no split '{train_split}': can be evaluated, not trained on; name another by data.shards.train_split")


def prepare_here(config: Mapping[str, Any]) -> PreparedData:
    """Prepare by processes of this machine; existing shards are compared with their checksums.

    Raises:
        ValueError: `data.folder` is an address.
    """
    from mim_lightning.analysis.html.validation_page import write_validation_report
    from mim_lightning.data.preparation.prepared import prepare_data

    parts = build_preparation(config["data"], config["num_workers"])
    _local(parts.folder)
    return prepare_data(
        parts, write_validation_report, specs=_text_specs(config), force=config["overwrite"], is_compared=True
    )


def check(data: Mapping[str, Any], specs: Mapping[str, InputSpec] | None) -> None:
    """Validate the source of a `data` section, and write the report beside the folder.

    Raises:
        ValueError: the data would be refused.
    """
    from mim_lightning.analysis.html.validation_page import write_validation_report
    from mim_lightning.data.preparation.prepared import check_only, report_folder
    from mim_lightning.data.validation import require_good

    parts = build_preparation(data)
    folder = _local(parts.folder)
    assert parts.source is not None
    checking = parts.checking(partial(write_validation_report, brief=False), specs)
    report = check_only(parts.source, folder, parts.settings, parts.protocol, checking)
    print(f"page and lists: {report_folder(folder)}")
    require_good(report)


def verify(folder: str) -> None:
    """Compare prepared data with their checksums, and print every damaged file.

    Raises:
        ValueError: one is.
    """
    from mim_lightning.data.preparation.prepared import open_prepared
    from mim_lightning.data.shards.verify import verify_sets

    prepared = open_prepared(folder)
    found = verify_sets(prepared.folder, ["catalogue", *(f"queries/{split}" for split in prepared.splits())])
    for line in found.damaged:
        print(f"damaged: {prepared.folder}/{line}")
    if found.damaged:
        raise ValueError(
            f"{prepared.folder}: {len(found.damaged)} damaged, the first is {found.damaged[0]}; copy the data again, "
            "or prepare them again with overwrite=true"
        )
    print(f"{prepared.folder}: {found.num_shards} shards with {found.num_rows:,} rows match their checksums")


def prepare_on_cluster(config: Mapping[str, Any]) -> PreparedData:
    """Prepare the two tables of data=manifest by Ray.

    Raises:
        ValueError: another kind of source or of splits.
    """
    from mim_lightning.data.manifest.manifest import ManifestSource
    from mim_lightning.data.preparation.ray_engine import prepare_with_ray
    from mim_lightning.data.splits import GivenSplits
    from mim_lightning.data.validation import ValidationSettings

    data = config["data"]
    parts = build_preparation(data)
    if not isinstance(parts.source, ManifestSource):
        raise ValueError(f"engine=ray: reads tables, not data={data['name']}; give data=manifest")
    if not isinstance(parts.protocol, GivenSplits):
        raise ValueError("engine=ray: no process sees all products, so only data/splits=given is possible")
    settings = parts.settings, build(config["ray"]), parts.check or ValidationSettings()
    return prepare_with_ray(parts.source, parts.folder, *settings, force=config["overwrite"])


def _text_specs(config: Mapping[str, Any]) -> dict[str, InputSpec] | None:
    """Return the input spec of the encoder in `tokenizer`, for every text field."""
    texts = config.get("tokenizer")
    if texts is None:
        return None
    encoder = build({**texts, "pretrained": None} if "pretrained" in texts else texts)  # only its tokenizer is used
    return dict.fromkeys(TEXT_FIELDS, encoder.spec)


def _local(folder: PathOrUrl) -> Path:
    if not isinstance(folder, Path):
        raise ValueError(f"data.folder={folder}: processes write to a local folder; or give engine=ray")
    return folder


if __name__ == "__main__":
    main()
