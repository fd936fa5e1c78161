"""python -m mim_lightning.prepare data=<your set>: tables to shards.

The train door does this by itself when the shards are missing; as a door of its own it runs where the pictures
are, and can make shards anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mim_lightning.config import build, run_door
from mim_lightning.data.prepared import prepare_shards


def main() -> None:
    run_door("prepare", prepare)


def prepare(config: dict[str, Any]) -> None:
    """Write the shards of `data`, and say what is in them."""
    data = config["data"]
    if data["source"] is None:
        raise ValueError(
            "data.source: nothing to prepare from; choose data=manifest, data=synthetic or another with a source"
        )
    settings = build(data["shards"])
    prepared = prepare_shards(build(data["source"]), Path(data["folder"]), settings, force=config["force"])
    print(f"{prepared.folder}")
    print(f"  catalogue: {len(prepared.catalogue())} rows")
    for split in prepared.splits():
        print(
            f"  queries, {split}: {len(prepared.queries(split))} rows{' (training)' * (split == settings.train_split)}"
        )


if __name__ == "__main__":
    main()
