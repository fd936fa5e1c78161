"""python -m mim_lightning.build_index checkpoint=<path> output=<folder>: embed a catalog and build an index of it.

The catalog is embedded shard by shard on the devices of `trainer.devices`, or in the processes that torchrun or srun
started on machines with a shared file system; each reads its own shards and writes their vectors. An interrupted pass
continues with the missing shards. The first process builds the index, measures its recall, and stores the result as a
whole.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.callable_module import make_callable
from mim_lightning.cli import run_entry_point
from mim_lightning.config import build, construct
from mim_lightning.expected_types import validate_type
from mim_lightning.fields import PRODUCT, side_of
from mim_lightning.launch import is_first_rank, is_launched, set_up_process

if TYPE_CHECKING:
    from mim_lightning.search.index.card import IndexCard

VERBATIM_KEYS = ("checkpoint", "output", "embeddings", "curve")


def main() -> None:
    run_entry_point("build_index", build_index, VERBATIM_KEYS, resumes=True)


def build_index(config: dict[str, Any]) -> IndexCard | None:
    """Embed a catalog and build an index of it, or change an existing index; return its card, in the first process."""
    from mim_lightning.index_calibration import calibrate_again, delete_products_of, stored_settings

    place = config["output"]
    if config["delete"]:
        return delete_products_of(place, config["delete"]) if is_first_rank() and not is_launched() else None
    from mim_lightning.catalog_embedding import embed_set
    from mim_lightning.data.images.crops import CropSettings
    from mim_lightning.inference.loading import choose_device, to_device
    from mim_lightning.lit.console import silence_lightning
    from mim_lightning.lit.trainer import validate_trainer, validate_unsharded
    from mim_lightning.search import index_builder as builder
    from mim_lightning.search.results import print_card
    from mim_lightning.search.size_cost import read_curve_of_new_index

    validate_type("reuse_memory", config["reuse_memory"], bool)
    validate_trainer(config["trainer"], is_training=False)
    validate_unsharded(config["trainer"])
    set_up_process(config, str(config["trainer"]["accelerator"]))
    silence_lightning()
    settings = build(config["index"])
    if config["gallery"] is not None and side_of(str(config["gallery"])) != PRODUCT:
        raise ValueError(f"gallery={config['gallery']}: is of queries; an index is of products")
    folder = Path(config["embeddings"] or Path(place) / "embeddings")
    crops = construct("crops", CropSettings, **(config["crops"] or {}))
    former, crops = builder.validate_update(place, settings, crops) if config["update"] else (None, crops)
    curve = read_curve_of_new_index(config["curve"], bool(config["update"]), not crops.is_whole)
    made = embed_set(
        config,
        config["gallery"],
        folder,
        "build_index",
        like=None if former is None else former.fingerprint,
        check=partial(builder.validate_gallery, settings, crops),
        crops=crops,
        needs_boxes=lambda catalog: former is None or builder.had_boxes(former, catalog),
    )
    if made is None:  # another process builds the index
        return None
    embedded, calibrated_by = made.collect(), stored_settings(place)
    if config["update"]:
        card, update = builder.add_products(place, embedded, made.shards)
        print(f"{place}: {update}")
    else:
        model = to_device(made.model, choose_device("cpu"))
        source = config["checkpoint"]
        card = builder.build_product_index(place, model, source, embedded, made.shards, settings, crops, curve)
    print_card(place, card, embedded.num_absent)
    calibrate_again(place, config["checkpoint"], calibrated_by)
    return card


make_callable(__name__, build_index, VERBATIM_KEYS)

if __name__ == "__main__":
    main()
