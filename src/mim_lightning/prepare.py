"""python -m mim_lightning.prepare data=<your set>: tables to shards.

The train door does this by itself when the shards are missing; as a door of its own it runs where the pictures
are, and can make shards anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim_lightning.config import build
from mim_lightning.data.prepared import PreparedData, open_prepared, prepare_shards
from mim_lightning.door import run_door


def main() -> None:
    run_door("prepare", prepare)


def prepare(config: dict[str, Any]) -> None:
    """Write the shards of `data`, and say what is in them."""
    data = config["data"]
    if data["source"] is None:
        raise ValueError("data.source: nothing to prepare from; choose a set with a source, such as data=manifest")
    prepared = prepare_data(data, force=config["force"])
    print(f"{prepared.folder}\n  catalogue: {len(prepared.catalogue())} rows")
    for split in prepared.splits():
        use = "triples or quadruples to train on" if split == data["shards"]["train_split"] else "queries"
        print(f"  {split}: {len(prepared.queries(split))} {use}")


def prepare_data(data: Mapping[str, Any], force: bool = False) -> PreparedData:
    """Open the prepared folder of a `data` section, making it first if it has a source."""
    if data["source"] is None:
        return open_prepared(Path(data["folder"]))
    parts = build(data["source"]), Path(data["folder"]), build(data["shards"]), build(data["protocol"])
    return prepare_shards(*parts, force=force)


if __name__ == "__main__":
    main()
