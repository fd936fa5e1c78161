"""python -m mim_lightning.prepare data=<your set>: tables to shards, on this machine or on a cluster.

The train door does this by itself when the shards are missing; as a door of its own it runs where the pictures
are, checks without writing, makes shards anew, and verifies those that are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.cli import run_door
from mim_lightning.config import build
from mim_lightning.display.text import plain
from mim_lightning.fields import TEXT_FIELDS

# what is imported in functions waits until it is needed: a wrong word is told at once, and the processes that write,
# which import this file too, need neither torch nor pages
if TYPE_CHECKING:
    from mim_lightning.data.preparation.prepared import PreparedData
    from mim_lightning.data.validation import CheckSettings
    from mim_lightning.types import InputSpec

ENGINES = ("processes", "ray")
CHECKS = ("always", "only")


def main() -> None:
    run_door("prepare", prepare, resumes=True)


def prepare(config: dict[str, Any]) -> None:
    """Write the shards of `data`, and say what is in them; or check or verify only."""
    data = config["data"]
    for key, known in (("engine", ENGINES), ("check", CHECKS)):
        if config[key] not in known:
            raise ValueError(f"{key}={config[key]}: give {' or '.join(known)}")
    for key in ("force", "verify"):
        if not isinstance(config[key], bool):
            raise ValueError(f"{key}={config[key]}: give true or false")
    if (config["num_workers"] or 0) < 0:
        raise ValueError(f"num_workers={config['num_workers']}: must not be negative")
    if config["verify"]:
        verify(data["folder"])
        return
    if data["source"] is None:
        raise ValueError("data.source: nothing to prepare from; choose a set with a source, such as data=manifest")
    if config["check"] == "only":
        check(data, _text_specs(config))
        return
    if config["engine"] == "ray":
        prepared = prepare_on_cluster(config)
    else:
        prepared = prepare_data(data, config["force"], config["num_workers"], _text_specs(config), is_compared=True)
    describe(prepared, data["shards"]["train_split"])


def describe(prepared: PreparedData, train_split: str) -> None:
    """Say what prepared data hold."""
    print(f"{prepared.folder}\n  catalogue: {len(prepared.catalogue())} rows")
    splits = prepared.splits()
    for split in splits:
        use = "triples or quadruples to train on" if split == train_split else "queries"
        print(f"  {plain(split)}: {len(prepared.queries(split))} {use}")
    if splits and train_split not in splits:
        print(f"  no split '{train_split}': can be evaluated, not trained on; name another by data.shards.train_split")


def prepare_data(
    data: Mapping[str, Any],
    force: bool = False,
    num_workers: int | None = None,
    specs: Mapping[str, InputSpec] | None = None,
    is_compared: bool = False,
    needed: Sequence[str] = (),
) -> PreparedData:
    """Open the prepared folder of a `data` section, making it first if it has a source.

    Args:
        num_workers: processes that write; None: as `data` has it.
        specs: of text towers, for the check of the texts' lengths.
        is_compared: compare what is there with its checksums, and make again what is damaged.
        needed: splits without which nothing is to be written.
    """
    from mim_lightning.analysis.html.validation_files import leave_check
    from mim_lightning.data.preparation.prepared import open_prepared, prepare_shards
    from mim_lightning.data.preparation.validated_source import Checking

    if data["source"] is None:
        return open_prepared(data["folder"], build(data.get("cache")))
    parts = build(data["source"]), _local(data["folder"]), build(data["shards"]), build(data["protocol"])
    checking = Checking(_strictness(data), specs, leave_check)
    workers = data["num_workers"] if num_workers is None else num_workers
    return prepare_shards(
        *parts, force=force, checking=checking, num_workers=workers, is_compared=is_compared, needed=needed
    )


def check(data: Mapping[str, Any], specs: Mapping[str, InputSpec] | None) -> None:
    """Check the source of a `data` section, and leave the report beside the folder.

    Raises:
        ValueError: the data would be refused.
    """
    from mim_lightning.analysis.html.validation_files import leave_check
    from mim_lightning.data.preparation.prepared import check_only, report_folder
    from mim_lightning.data.preparation.validated_source import Checking
    from mim_lightning.data.validation import require_good

    checking = Checking(_strictness(data), specs, partial(leave_check, brief=False))
    folder = _local(data["folder"])
    report = check_only(build(data["source"]), folder, build(data["shards"]), build(data["protocol"]), checking)
    print(f"page and lists: {report_folder(folder)}")
    require_good(report)


def verify(folder: str) -> None:
    """Compare prepared data with their checksums, and name every file that is damaged.

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
            "or prepare them anew with force=true"
        )
    print(f"{prepared.folder}: {found.num_shards} shards with {found.num_rows:,} rows are what was written")


def prepare_on_cluster(config: Mapping[str, Any]) -> PreparedData:
    """Prepare the two tables of data=manifest by Ray.

    Raises:
        ValueError: the source or the protocol is another one.
    """
    from mim_lightning.data.manifest.manifest import ManifestSource
    from mim_lightning.data.preparation.ray_engine import prepare_with_ray
    from mim_lightning.data.splits import Seen
    from mim_lightning.io.paths import to_path_or_url

    data = config["data"]
    source = build(data["source"])
    if not isinstance(source, ManifestSource):
        raise ValueError(f"engine=ray: reads tables, not data={data['name']}; give data=manifest")
    if not isinstance(build(data["protocol"]), Seen):
        raise ValueError("engine=ray: no process sees all products, so data.protocol=seen is the only one")
    place, settings, ray_settings = to_path_or_url(data["folder"]), build(data["shards"]), build(config["ray"])
    return prepare_with_ray(source, place, settings, ray_settings, _strictness(data), force=config["force"])


def _text_specs(config: Mapping[str, Any]) -> dict[str, InputSpec] | None:
    """Return what the encoder of `texts` wants, as both text towers' spec."""
    texts = config.get("texts")
    if texts is None:
        return None
    encoder = build({**texts, "pretrained": None} if "pretrained" in texts else texts)  # its tokeniser is all we need
    return dict.fromkeys(TEXT_FIELDS, encoder.spec)


def _strictness(data: Mapping[str, Any]) -> CheckSettings:
    from mim_lightning.data.validation import CheckSettings

    return build(data.get("check")) or CheckSettings()  # older runs have no such section


def _local(folder: str) -> Path:
    from mim_lightning.io.paths import to_path_or_url

    place = to_path_or_url(folder)
    if not isinstance(place, Path):
        raise ValueError(f"data.folder={folder}: processes of this machine write to a folder of it; or give engine=ray")
    return place


if __name__ == "__main__":
    main()
