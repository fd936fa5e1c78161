"""python -m mim_lightning.build_index checkpoint=<path> output=<folder>: embed a catalog and build an index of it.

The catalog is embedded shard by shard on the devices of `trainer.devices`: an interrupted pass continues with the
missing shards. The index is built, its recall measured, and the result stored as a whole.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from mim_lightning.cli import run_entry_point
from mim_lightning.config import build, build_preparation
from mim_lightning.expected_types import validate_arguments, validate_type
from mim_lightning.launch import choose_precision, is_launched, launch, num_processes_to_launch, set_up_process
from mim_lightning.stored_config import data_of

VERBATIM_KEYS = ("checkpoint", "output", "embeddings")


def main() -> None:
    run_entry_point("build_index", build_index, VERBATIM_KEYS, resumes=True)


def build_index(config: dict[str, Any]) -> None:
    """Embed a catalog and build an index of it, or change an existing index."""
    from mim_lightning.analysis.html.validation_page import write_validation_report
    from mim_lightning.data.preparation.preparation import prepare_data
    from mim_lightning.inference.loading import choose_device, load_trained, to_device
    from mim_lightning.lit.console import silence_lightning
    from mim_lightning.lit.datamodule import MatchDataModule
    from mim_lightning.lit.embed_catalog import embed_catalog
    from mim_lightning.lit.module import MatchModule
    from mim_lightning.search.embedding_store import EmbeddingStore, describe_embedding
    from mim_lightning.search.index_builder import add_products, build_product_index, choose_gallery, delete_products
    from mim_lightning.search.results_table import print_card

    place = config["output"]
    if config["delete"]:
        card, num_deleted = delete_products(place, config["delete"])
        print(f"deleted {num_deleted} of {len(config['delete'])} products")
        print_card(place, card)
        return
    validate_type("reuse_memory", config["reuse_memory"], bool)
    set_up_process(config, str(config["trainer"]["accelerator"]))
    settings, trained = build(config["index"]), load_trained(config["checkpoint"])
    matcher, data = trained.matcher, config.get("data") or data_of(trained.config, config["checkpoint"])
    validate_arguments(MatchDataModule, data, "data" if config.get("data") else f"{config['checkpoint']}: data")
    if is_launched():  # by a process that has prepared the data
        data = {**data, "source": None}
    prepared = prepare_data(build_preparation(data), write_validation_report)
    catalog, gallery = prepared.catalog(), choose_gallery(config["gallery"], matcher.names)
    fusion = matcher.fusions.get(gallery)
    width = matcher.dimension if fusion is None else fusion.index_width
    facts = describe_embedding(catalog, trained.fingerprint, gallery, width)
    store = EmbeddingStore(Path(config["embeddings"] or Path(place) / "embeddings"), facts)
    missing, num_processes = store.missing(), num_processes_to_launch(config["trainer"])
    if missing and num_processes:
        launch("mim_lightning.build_index", {**config, "data": data}, num_processes)
    else:
        silence_lightning()
        datamodule = build(data, specs=matcher.input_specs(), prepared=prepared)
        trainer = build({**config["trainer"], "precision": choose_precision(config["trainer"])})
        module = MatchModule(deepcopy(matcher))  # a trainer may leave it in another precision, or in parts
        embed_catalog(trainer, module, datamodule, gallery, missing, store.write)
    if is_launched():
        return  # the process that launched this one builds the index
    embedded = store.collect(catalog)
    if config["update"]:
        card = add_products(place, embedded)
    else:
        model = to_device(trained, choose_device("cpu"))
        card = build_product_index(place, model, config["checkpoint"], embedded, catalog, settings)
    print_card(place, card, embedded.num_absent)


if __name__ == "__main__":
    main()
