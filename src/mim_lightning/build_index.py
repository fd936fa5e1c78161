"""mim build_index checkpoint=<path> output=<folder>: embed a catalog and build an index of it.

The catalog is embedded shard by shard on the devices of `trainer.devices`, or in the processes that torchrun or srun
started on machines with a shared file system; each reads its own shards and writes their vectors. An interrupted pass
continues with the missing shards. The first process builds the index, measures its recall, and stores the result as a
whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mim_lightning.artifact_paths import validate_index, validate_model
from mim_lightning.callable_module import make_callable
from mim_lightning.cli import run_entry_point
from mim_lightning.expected_types import validate_type
from mim_lightning.launch import is_first_rank, is_launched, set_up_process
from mim_lightning.next_command import print_next_service

if TYPE_CHECKING:
    from mim_lightning.search.index.card import IndexCard

VERBATIM_KEYS = ("checkpoint", "output", "embeddings", "curve")


def main() -> None:
    run_entry_point("build_index", build_index, VERBATIM_KEYS, resumes=True)


def build_index(config: dict[str, Any]) -> IndexCard | None:
    """Embed a catalog and build an index of it, or change an existing index; return its card, in the first process."""
    validate_type("reuse_memory", config["reuse_memory"], bool)
    if config["delete"] or config["update"]:
        validate_index(config["output"])
    if not config["delete"]:
        if not config["checkpoint"]:
            raise ValueError("checkpoint: needs a value; give checkpoint=<file>, or the folder of an export")
        validate_model(config["checkpoint"])
    elif not is_first_rank() or is_launched():
        return None
    card = _delete(config) if config["delete"] else _index(config)
    if card is not None:
        print_next_service(config["output"])
    return card


def _delete(config: dict[str, Any]) -> IndexCard:
    from mim_lightning.index_calibration import delete_products_of

    return delete_products_of(config["output"], config["delete"])


def _index(config: dict[str, Any]) -> IndexCard | None:
    from mim_lightning.catalog_index import index_catalog
    from mim_lightning.lit.console import silence_lightning
    from mim_lightning.lit.trainer import validate_trainer, validate_unsharded

    validate_trainer(config["trainer"], is_training=False)
    validate_unsharded(config["trainer"])
    set_up_process(config, str(config["trainer"]["accelerator"]))
    silence_lightning()
    return index_catalog(config)


make_callable(__name__, build_index, VERBATIM_KEYS)

if __name__ == "__main__":
    main()
