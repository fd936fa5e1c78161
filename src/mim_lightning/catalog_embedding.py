"""The embedding of a catalog or of queries by a checkpoint: of the shards that are missing, in one process or many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mim_lightning.cli import leave_process_group
from mim_lightning.config import build
from mim_lightning.data_config import build_preparation
from mim_lightning.expected_types import validate_arguments
from mim_lightning.fields import PRODUCT, side_of
from mim_lightning.io.digest import has_same_scheme
from mim_lightning.launch import choose_precision, is_first_rank, is_launched, launch, num_processes_to_launch
from mim_lightning.stored_config import data_of

if TYPE_CHECKING:
    from mim_lightning.data.images.crops import Crop, CropSettings
    from mim_lightning.data.shards.shard_set import ShardSet
    from mim_lightning.model.checkpoint import TrainedMatcher
    from mim_lightning.model.fusion import Fusion
    from mim_lightning.search.embedding_store import EmbeddedCatalog, EmbeddingFacts, EmbeddingStore
    from mim_lightning.types import TowerSpec


class SetEmbedding(NamedTuple):
    """A set of rows, where its vectors are, and the model that they are of."""

    model: TrainedMatcher
    shards: ShardSet
    store: EmbeddingStore
    split: str | None  # of the queries; None: the catalog
    crop_stores: tuple[EmbeddingStore, ...] = ()  # of parts of the images

    def collect(self) -> EmbeddedCatalog:
        """Return the rows of the catalog that was embedded, those of parts of the images after those of whole ones."""
        embedded = self.store.collect(self.shards, self.crop_stores)
        return replace(embedded, facts=replace(embedded.facts, fingerprint=self.model.fingerprint))


def embed_set(
    config: dict[str, Any],
    side: str | None,
    folder: Path,
    command: str,
    split: str | None = None,
    like: str | None = None,
    check: Callable[[str, Fusion | None, int, Mapping[str, TowerSpec]], None] = lambda *facts: None,
    crops: CropSettings | None = None,
    needs_boxes: Callable[[ShardSet], bool] = lambda catalog: True,
) -> SetEmbedding | None:
    """Embed the catalog or the queries of a checkpoint's data, or of other data; shards that have vectors are left out.

    Args:
        config: of an entry point: checkpoint, data and trainer are read.
        side: the tower or fusion; of the queries those of a split are embedded, else the catalog. None: that of an
            index, see `choose_gallery`.
        folder: of the embeddings, where an interrupted pass resumes.
        command: the entry point, which further processes start with the same config.
        split: of the queries; None: the one that training evaluated.
        like: a fingerprint in whose scheme that of the model is computed.
        check: gets the side, the fusion that it may be, the width of its vectors, and what each tower reads, before
            anything is embedded.
        crops: parts of the images of a catalog that are embedded too, each in a folder below `folder`.
        needs_boxes: of the catalog, see `make_crops`.

    Returns:
        None on all processes but the first.
    """
    from mim_lightning.analysis.html.validation_page import write_validation_report
    from mim_lightning.data.images.crops import count_left_out, make_crops
    from mim_lightning.data.preparation.opened_data import find_versions
    from mim_lightning.data.preparation.preparation import prepare_data
    from mim_lightning.data.preparation.prepared import open_prepared
    from mim_lightning.inference.loading import load_trained
    from mim_lightning.lit.console import ProgressBar
    from mim_lightning.lit.datamodule import MatchDataModule
    from mim_lightning.lit.embed_catalog import embed_catalog
    from mim_lightning.lit.module import MatchModule
    from mim_lightning.lit.trainer import ask_first_rank
    from mim_lightning.search.embedding_reuse import carry_over
    from mim_lightning.search.embedding_store import EmbeddingStore, StoredEmbedding, describe_embedding
    from mim_lightning.search.index_builder import choose_gallery

    is_leader, num_processes = is_first_rank() and not is_launched(), num_processes_to_launch(config["trainer"])
    options = {**config["trainer"], "precision": choose_precision(config["trainer"])}
    trainer = None if num_processes else build(options, callbacks=[ProgressBar()], logger=False)

    def ask(question: Callable[[], Any]) -> Any:
        """Return the first process's answer: others may come later, when files are there that were not."""
        return question() if trainer is None else ask_first_rank(trainer.strategy, question)

    trained = load_trained(config["checkpoint"], like=like)
    matcher, data = trained.matcher, config.get("data") or data_of(trained.config, config["checkpoint"])
    validate_arguments(MatchDataModule, data, "data" if config.get("data") else f"{config['checkpoint']}: data")
    if not is_launched():  # by a process that has prepared the data
        ask(lambda: prepare_data(build_preparation(data), write_validation_report) and None)
    version = ask(lambda: find_versions(data)["main"])  # which is the newest is decided once, for all processes
    data = {**data, "source": None, "version": {"main": version}}
    prepared = open_prepared(data["folder"], build(data.get("cache")), version)
    gallery = choose_gallery(side, matcher.names, "gallery" if command == "build_index" else "tower")
    is_catalog = side_of(gallery) == PRODUCT
    split = None if is_catalog else str(split or data["val_split"])
    catalog = prepared.catalog() if split is None else prepared.queries(split)
    fusion = matcher.fusions.get(gallery)
    width = matcher.dimension if fusion is None else fusion.index_width
    check(gallery, fusion, width, matcher.input_specs())
    stored, name = StoredEmbedding.read(folder), trained.fingerprint
    if stored is not None and not has_same_scheme(stored.facts.fingerprint, name):
        # the same model may be named in another way
        found = load_trained(config["checkpoint"], like=stored.facts.fingerprint).fingerprint
        name = found if found == stored.facts.fingerprint else name
    facts = describe_embedding(catalog, name, gallery, width)
    parts: list[Crop] = []
    if crops is not None and not crops.is_whole:
        parts = ask(lambda: make_crops(crops, catalog.all_facts(), catalog.keys, needs_boxes(catalog)))
        if is_leader and not parts:
            print(f"crops: {crops}, of which this catalog has none: its whole images are embedded alone")
    whole = (folder, facts, None)
    passes = [whole, *((folder / part.name, replace(facts, crop=part.describes), part) for part in parts)]

    def find_missing(folder: Path, facts: EmbeddingFacts) -> list[int]:
        if num_kept := carry_over(folder, facts, catalog):
            print(f"{folder}: {num_kept:,} of {len(catalog):,} rows were embedded of a former version of the catalog")
        return EmbeddingStore(folder, facts).missing()

    missing = [ask(partial(find_missing, place, its)) for place, its, _ in passes]
    stores, num_shards = [EmbeddingStore(place, its) for place, its, _ in passes], len(facts.shard_sizes)
    if is_leader and 0 < sum(map(len, missing)) < num_shards * len(passes):
        num_missing, num_all = sum(map(len, missing)), num_shards * len(passes)
        print(f"{num_all - num_missing} of {num_all} shards are embedded already; embedding {num_missing}")
    if any(missing) and trainer is None:
        launch(f"mim_lightning.{command}", {**config, "data": data}, num_processes)
    elif trainer is not None:
        datamodule = build(data, specs=matcher.input_specs(), prepared=prepared)
        module = MatchModule(deepcopy(matcher))  # a trainer may leave it in another precision, or in parts
        for store, shard_idxs, (_, _, crop) in zip(stores, missing, passes, strict=True):
            embed_catalog(trainer, module, datamodule, gallery, shard_idxs, store.write, catalog, crop)
        trainer.strategy.barrier()  # every shard is there
        leave_process_group()  # the others end; none waits while the index is built
    if not is_leader:
        return None
    if parts:
        present = [store.read_present() for store in stores]
        num_left_out, num_products = count_left_out(parts, present[1:], present[0], catalog.keys)
        if num_left_out:
            print(
                f"crops: {num_left_out:,} parts of {num_products:,} products are left out: they are a hundred times as "
                "long as wide, or have no image"
            )
    return SetEmbedding(trained, catalog, stores[0], split, tuple(stores[1:]))
