"""python -m mim_lightning.build_index checkpoint=<path> output=<folder>: from a checkpoint to an index.

The catalogue is embedded on as many devices as `trainer.devices` says, shard by shard: an interrupted pass goes on
where it was. The index is built, its recall measured, and put in place whole.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.cli import run_door
from mim_lightning.config import build, build_preparation
from mim_lightning.expected_types import refuse_mistyped
from mim_lightning.fields import PRODUCT, PRODUCT_IMAGE
from mim_lightning.launch import choose_precision, is_launched, launch, num_processes_to_launch
from mim_lightning.stored_config import data_of

if TYPE_CHECKING:
    from mim_lightning.data.preparation.prepared import PreparedData
    from mim_lightning.model.matcher import Matcher
    from mim_lightning.search.embedding_store import EmbeddingStore

FREE_TEXTS = ("checkpoint", "output", "embeddings")


def main() -> None:
    run_door("build_index", build_index, FREE_TEXTS, resumes=True)


def build_index(config: dict[str, Any]) -> None:
    """Embed, build and verify; or change the index that is there."""
    from mim_lightning.analysis.html.validation_page import write_validation_report
    from mim_lightning.data.preparation.prepared import prepare_data
    from mim_lightning.inference.loading import choose_device, load_trained, to_device
    from mim_lightning.lit.datamodule import MatchDataModule
    from mim_lightning.search.console import print_card
    from mim_lightning.search.embedding_store import EmbeddingStore, describe_embedding
    from mim_lightning.search.index_builder import add_products, build_product_index, delete_products

    place = config["output"]
    if config["delete"]:
        card, num_removed = delete_products(place, config["delete"])
        print(f"{num_removed} of {len(config['delete'])} products were there and are removed")
        print_card(place, card)
        return
    settings = build(config["index"])
    trained = load_trained(config["checkpoint"])
    named = config.get("data")
    config = {**config, "data": named or data_of(trained.config, config["checkpoint"])}
    refuse_mistyped(MatchDataModule, config["data"], "data" if named else f"{config['checkpoint']}: data")
    if is_launched():  # by a process that has prepared them
        config["data"] = {**config["data"], "source": None}
    prepared = prepare_data(build_preparation(config["data"]), write_validation_report)
    catalogue = prepared.catalogue()
    gallery = choose_gallery(config["gallery"], trained.matcher)
    facts = describe_embedding(catalogue, trained.fingerprint, gallery, trained.matcher.dimension)
    folder = EmbeddingStore(Path(config["embeddings"] or Path(place) / "embeddings"), facts)
    embed_missing(config, trained.matcher, prepared, folder)
    if is_launched():
        return  # the process that launched this one goes on
    embedded = folder.collect(catalogue)
    if config["update"]:
        card = add_products(place, embedded)
    else:
        model = to_device(trained, choose_device("cpu"))
        card = build_product_index(place, model, config["checkpoint"], embedded, catalogue, settings)
    print_card(place, card, embedded.num_absent)


def choose_gallery(wanted: str | None, matcher: Matcher) -> str:
    gallery = wanted or (PRODUCT if PRODUCT in matcher.fusions else PRODUCT_IMAGE)
    if gallery not in matcher.names:
        raise ValueError(f"gallery={gallery}: the model has no such tower or fusion; it has {', '.join(matcher.names)}")
    return gallery


def embed_missing(config: dict[str, Any], matcher: Matcher, prepared: PreparedData, folder: EmbeddingStore) -> None:
    """Embed what the folder lacks, in this process or in several."""
    from mim_lightning.lit.console import silence_lightning
    from mim_lightning.lit.embed_catalog import embed_catalog
    from mim_lightning.lit.module import MatchModule

    missing = folder.missing()
    num_processes = num_processes_to_launch(config["trainer"])
    if missing and num_processes:
        launch("mim_lightning.build_index", config, num_processes)
        return
    silence_lightning()
    datamodule = build(config["data"], specs=matcher.input_specs(), prepared=prepared)
    trainer = build({**config["trainer"], "precision": choose_precision(config["trainer"])})
    module = MatchModule(deepcopy(matcher))  # a trainer may leave it in another precision, or in parts
    embed_catalog(trainer, module, datamodule, folder.facts.gallery, missing, folder.write)


if __name__ == "__main__":
    main()
