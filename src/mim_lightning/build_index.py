"""python -m mim_lightning.build_index checkpoint=<path> output=<folder>: embed a catalog and build an index of it.

The catalog is embedded shard by shard on the devices of `trainer.devices`, or in the processes that torchrun or srun
started on machines with a shared file system; each reads its own shards and writes their vectors. An interrupted pass
continues with the missing shards. The first process builds the index, measures its recall, and stores the result as a
whole.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mim_lightning.cli import leave_process_group, run_entry_point
from mim_lightning.config import build, build_preparation
from mim_lightning.expected_types import validate_arguments, validate_type
from mim_lightning.io.digest import has_same_scheme
from mim_lightning.launch import (
    choose_precision,
    is_first_rank,
    is_launched,
    launch,
    num_processes_to_launch,
    set_up_process,
)
from mim_lightning.stored_config import data_of

VERBATIM_KEYS = ("checkpoint", "output", "embeddings")


def main() -> None:
    run_entry_point("build_index", build_index, VERBATIM_KEYS, resumes=True)


def build_index(config: dict[str, Any]) -> None:
    """Embed a catalog and build an index of it, or change an existing index."""
    from mim_lightning.analysis.html.validation_page import write_validation_report
    from mim_lightning.data.preparation.opened_data import find_versions
    from mim_lightning.data.preparation.preparation import prepare_data
    from mim_lightning.data.preparation.prepared import open_prepared
    from mim_lightning.inference.loading import choose_device, load_trained, to_device
    from mim_lightning.lit.console import ProgressBar, silence_lightning
    from mim_lightning.lit.datamodule import MatchDataModule
    from mim_lightning.lit.embed_catalog import embed_catalog
    from mim_lightning.lit.module import MatchModule
    from mim_lightning.lit.trainer import ask_first_rank, validate_trainer, validate_unsharded
    from mim_lightning.search.embedding_reuse import carry_over
    from mim_lightning.search.embedding_store import EmbeddingStore, StoredEmbedding, describe_embedding
    from mim_lightning.search.index.factory import open_index
    from mim_lightning.search.index_builder import add_products, build_product_index, choose_gallery, delete_products
    from mim_lightning.search.results_table import print_card

    place, is_leader = config["output"], is_first_rank() and not is_launched()
    if config["delete"]:
        if not is_leader:
            return
        from mim_lightning.data.manifest.id_list import read_ids

        ids = read_ids(config["delete"], "product_id")
        card, num_deleted = delete_products(place, ids)
        print(f"deleted {num_deleted} of {len(ids)} products")
        print_card(place, card)
        return
    validate_type("reuse_memory", config["reuse_memory"], bool)
    validate_trainer(config["trainer"], is_training=False)
    validate_unsharded(config["trainer"])
    set_up_process(config, str(config["trainer"]["accelerator"]))
    silence_lightning()
    settings, num_processes = build(config["index"]), num_processes_to_launch(config["trainer"])
    options = {**config["trainer"], "precision": choose_precision(config["trainer"])}
    trainer = None if num_processes else build(options, callbacks=[ProgressBar()], logger=False)

    def ask(question: Callable[[], Any]) -> Any:
        """Return the first process's answer: others may come later, when files are there that were not."""
        return question() if trainer is None else ask_first_rank(trainer.strategy, question)

    like = open_index(place).card.fingerprint if config["update"] else None
    trained = load_trained(config["checkpoint"], like=like)
    matcher, data = trained.matcher, config.get("data") or data_of(trained.config, config["checkpoint"])
    validate_arguments(MatchDataModule, data, "data" if config.get("data") else f"{config['checkpoint']}: data")
    if not is_launched():  # by a process that has prepared the data
        ask(lambda: prepare_data(build_preparation(data), write_validation_report) and None)
    version = ask(lambda: find_versions(data)["main"])  # which is the newest is decided once, for all processes
    data = {**data, "source": None, "version": {"main": version}}
    prepared = open_prepared(data["folder"], build(data.get("cache")), version)
    catalog, gallery = prepared.catalog(), choose_gallery(config["gallery"], matcher.names)
    fusion = matcher.fusions.get(gallery)
    width = matcher.dimension if fusion is None else fusion.index_width
    folder = Path(config["embeddings"] or Path(place) / "embeddings")
    stored, name = StoredEmbedding.read(folder), trained.fingerprint
    if stored is not None and not has_same_scheme(stored.facts.fingerprint, name):
        # the same model may be named in another way
        found = load_trained(config["checkpoint"], like=stored.facts.fingerprint).fingerprint
        name = found if found == stored.facts.fingerprint else name
    facts = describe_embedding(catalog, name, gallery, width)
    open_store = partial(EmbeddingStore, folder, facts)

    def find_missing() -> list[int]:
        if num_kept := carry_over(folder, facts, catalog):
            print(f"{folder}: {num_kept:,} of {len(catalog):,} rows were embedded of a former version of the catalog")
        return open_store().missing()

    missing = ask(find_missing)
    store, num_shards = open_store(), len(facts.shard_sizes)
    if is_leader and 0 < len(missing) < num_shards:
        print(f"{num_shards - len(missing)} of {num_shards} shards are embedded already; embedding {len(missing)}")
    if missing and trainer is None:
        launch("mim_lightning.build_index", {**config, "data": data}, num_processes)
    elif trainer is not None:
        datamodule = build(data, specs=matcher.input_specs(), prepared=prepared)
        module = MatchModule(deepcopy(matcher))  # a trainer may leave it in another precision, or in parts
        embed_catalog(trainer, module, datamodule, gallery, missing, store.write)
        trainer.strategy.barrier()  # every shard is there
        leave_process_group()  # the others end; none waits while the index is built
    if not is_leader:
        return
    embedded = store.collect(catalog)
    embedded = replace(embedded, facts=replace(embedded.facts, fingerprint=trained.fingerprint))
    if config["update"]:
        card, update = add_products(place, embedded, catalog)
        print(f"{place}: {update}")
    else:
        model = to_device(trained, choose_device("cpu"))
        card = build_product_index(place, model, config["checkpoint"], embedded, catalog, settings)
    print_card(place, card, embedded.num_absent)


if __name__ == "__main__":
    main()
