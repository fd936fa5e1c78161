"""mim prepare data=<your set>: write the shards of a data set, here or on a Ray cluster.

Training does this by itself if the shards do not exist; here one can also validate only, write again, or verify.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.callable_module import make_callable
from mim_lightning.cli import as_override, given_arguments, run_entry_point
from mim_lightning.data_config import build_change
from mim_lightning.data_preparation import ENGINES, prepare_set
from mim_lightning.expected_types import validate_type
from mim_lightning.next_command import print_next
from mim_lightning.prepared_versions import show_versions, write_next_version

if TYPE_CHECKING:
    from mim_lightning.data.preparation.prepared import PreparedData


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
    elif config["list_versions"] or config["prune"]["keep"] is not None:
        show_versions(config)
        return
    elif config["verify"]:
        from mim_lightning.data.preparation.prepared import open_prepared

        prepared = open_prepared(config["data"]["folder"])
        print(prepared.verify(print))
    else:
        made = prepare_set(config)
        if isinstance(made, Path):
            print(f"report: {made}")
            print_next("prepare", *(word for word in given_arguments() if not word.startswith("validate_only=")))
            return
        prepared = made
    if not config["verify"]:
        print(prepared.summary(prepared.describe()["settings"]["train_split"]))
    _print_training(config["data"], prepared)


def _print_training(data: dict[str, Any], prepared: PreparedData) -> None:
    """Print the command that trains on the data; none where they lack rows to train on, or to evaluate."""
    train_split, splits = prepared.describe()["settings"]["train_split"], prepared.splits()
    evaluated = [split for split in (data["val_split"], *splits) if split in splits and split != train_split]
    if train_split not in splits or not evaluated:
        return
    words = given_arguments("data", "paths")
    if any(word.startswith(("data.source", "data.folder")) for word in words):  # no set that the project knows by name
        words = ["data=shards", as_override("data.folder", prepared.folder)]
        words += [as_override("data.shards.train_split", train_split)] * (train_split != "train")
        words += [as_override("data.val_split", evaluated[0])] * (evaluated[0] != "val")
    print_next("train", *words)


make_callable(__name__, prepare)

if __name__ == "__main__":
    main()
