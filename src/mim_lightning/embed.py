"""mim embed checkpoint=<path> output=<folder> [tower=query split=val]: vectors as Parquet files.

Embeds the catalog, or the queries of a split, on the devices of `trainer.devices`, or in the processes that torchrun or
srun started; an interrupted pass continues with the missing shards. The first process writes vectors, ids and metadata.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mim_lightning.artifact_paths import validate_model
from mim_lightning.callable_module import make_callable
from mim_lightning.cli import given_arguments, run_entry_point
from mim_lightning.expected_types import validate_type
from mim_lightning.fields import PRODUCT, QUERY, side_of
from mim_lightning.launch import set_up_process
from mim_lightning.next_command import print_next

VERBATIM_KEYS = ("checkpoint", "output", "embeddings")
DTYPES = ("float32", "float16")


def main() -> None:
    run_entry_point("embed", embed, VERBATIM_KEYS, resumes=True)


def embed(config: dict[str, Any]) -> Path | None:
    """Embed a set, and write `<tower>.parquet`, of queries `<tower>-<split>.parquet`, with a JSON file beside it.

    Returns the path of the file; None in a process that does not write it.
    """
    for key in ("tower", "split", "embeddings"):
        validate_type(key, config[key], str | None)
    validate_type("reuse_memory", config["reuse_memory"], bool)
    if config["dtype"] not in DTYPES:
        raise ValueError(f"dtype={config['dtype']}: choose one of {', '.join(DTYPES)}")
    tower, split = config["tower"], config["split"]
    if split is not None and (tower is None or side_of(tower) == PRODUCT):
        raise ValueError(f"split={split}: is of queries; give the tower or fusion to embed them with, as tower={QUERY}")
    validate_model(config["checkpoint"])
    from mim_lightning.catalog_embedding import embed_set
    from mim_lightning.lit.console import silence_lightning
    from mim_lightning.lit.trainer import validate_trainer, validate_unsharded
    from mim_lightning.search.vector_files import write_vectors

    validate_trainer(config["trainer"], is_training=False)
    validate_unsharded(config["trainer"])
    set_up_process(config, str(config["trainer"]["accelerator"]))
    silence_lightning()
    folder = Path(str(config["output"]))
    name = "-".join(part for part in (tower or PRODUCT, split) if part)
    shards = Path(config["embeddings"] or folder / "embeddings" / name)
    made = embed_set(config, tower, shards, "embed", split)
    if made is None:  # another process writes the file
        return None
    path = folder / f"{'-'.join(part for part in (made.store.facts.gallery, made.split) if part)}.parquet"
    facts = write_vectors(path, made.store, made.shards, made.model.fingerprint, config["checkpoint"], config["dtype"])
    absent = f"; {facts.num_absent:,} rows have none of its inputs" if facts.num_absent else ""
    print(f"{path}: {facts.num_rows:,} vectors of '{facts.tower}', {facts.dimension} {facts.dtype} each{absent}")
    same = f"checkpoint={config['checkpoint']}", *given_arguments("data", "paths", "trainer")
    if made.split is None:
        place = f"embeddings={shards}", f"gallery={made.store.facts.gallery}"
        print_next("build_index", f"output={folder / 'index'}", *place, *same)
    else:  # of queries: the products to which they belong
        print_next("embed", f"output={folder}", *same)
    return path


make_callable(__name__, embed, VERBATIM_KEYS)

if __name__ == "__main__":
    main()
