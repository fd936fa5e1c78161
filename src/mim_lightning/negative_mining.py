"""Hard negatives of training rows by a trained model and an index of its catalog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mim_lightning.config import build
from mim_lightning.data_config import build_preparation
from mim_lightning.expected_types import validate_arguments
from mim_lightning.ids import NO_KEY, hash_id
from mim_lightning.stored_config import data_of

if TYPE_CHECKING:
    from mim_lightning.data.sampling.hard_negatives import MiningSettings
    from mim_lightning.metrics.negatives import MinedNegatives
    from mim_lightning.types import Direction

BLOCK_QUERIES = 1024  # searched at once


def mine_index(config: dict[str, Any], settings: MiningSettings) -> MinedNegatives:
    """Search the index for every query of the training rows, and write its hard negatives into `output`.

    Args:
        config: as of conf/mine.yaml.

    Raises:
        ValueError: an index of another model or gallery, or without the products of the training rows.
    """
    from mim_lightning.analysis.html.validation_page import write_validation_report
    from mim_lightning.data.preparation.preparation import prepare_data
    from mim_lightning.data.sampling.negative_table import name_products, to_lists, write_negatives
    from mim_lightning.data.shards.mixture_set import ConcatShardSet
    from mim_lightning.display.progress import ProgressMeter
    from mim_lightning.fields import QUERY, side_of
    from mim_lightning.inference.loading import choose_device, load_trained
    from mim_lightning.lit.callbacks.hard_negatives import make_guard
    from mim_lightning.lit.datamodule import MatchDataModule
    from mim_lightning.lit.embed_queries import embed_queries
    from mim_lightning.metrics.directions import presence_of, read_vectors, truth_of_queries
    from mim_lightning.metrics.negatives import choose_negatives
    from mim_lightning.search.index.factory import open_index

    place, device = config["index"], choose_device(config["device"])
    index = open_index(place)
    trained = load_trained(config["checkpoint"], like=index.card.fingerprint)
    index.card.validate_fingerprint(trained.fingerprint, place)
    matcher = trained.matcher.to(device)
    direction = _direction(trained.config, settings.direction, index.card.gallery, place)
    if index.card.full_dimension:
        raise ValueError(
            f"index={place}: has {index.card.dimension} of {index.card.full_dimension} dimensions; mine in one that "
            "was built without dimension="
        )
    if index.card.dimension != matcher.dimension:
        raise ValueError(f"index={place}: holds several vectors a product, whose scores are combined; mine in training")
    data = config.get("data") or data_of(trained.config, config["checkpoint"])
    validate_arguments(MatchDataModule, data, "data" if config.get("data") else f"{config['checkpoint']}: data")
    prepared = prepare_data(build_preparation(data), write_validation_report)
    datamodule = build({**data, "source": None}, specs=matcher.input_specs(), prepared=prepared)
    shards = datamodule.opened.train
    if isinstance(shards, ConcatShardSet):
        raise ValueError("data.mixture: negatives are mined in one set; give data=<the set> without mixture")
    guard = make_guard(settings, prepared, datamodule.validation, "mining")
    loader = datamodule.train_query_pass()
    with ProgressMeter(len(loader), verb="embedded", noun="batches", label="queries") as meter:
        towers = [name for name in matcher.tower_names if side_of(name) == QUERY]
        queries = embed_queries(loader, towers, (device, torch.device("cpu")), matcher, meter.update)
    fusion = matcher.fusions.get(direction.query)
    queries = queries.take(presence_of(direction.query, queries, fusion))
    vectors = read_vectors(direction.query, queries, fusion, device)
    relevant_QR, _ = truth_of_queries(direction, queries)
    trained_keys, known = np.unique(shards.column("product_keys")), {NO_KEY: ""}
    choose = partial(choose_negatives, num_negatives=settings.num_candidates, guard=guard)
    parts: list[MinedNegatives] = []
    with ProgressMeter(len(queries), verb="searched", noun="queries", label="index") as meter:
        for start in range(0, len(queries), BLOCK_QUERIES):
            block = slice(start, min(start + BLOCK_QUERIES, len(queries)))
            hits = index.search(vectors.read(block).cpu().numpy(), settings.depth)
            keys_QK = _keys_of(hits.product_ids, known)
            keys_QK[~np.isin(keys_QK, trained_keys)] = NO_KEY
            ranked = torch.from_numpy(keys_QK), torch.from_numpy(hits.scores)
            parts.append(choose(queries.row_keys[block], *ranked, relevant_QR[block]))
            meter.update(block.stop)
    if not trained_keys[np.isin(trained_keys, [*known])].size:
        raise ValueError(f"index={place}: no product of the training rows of {shards.folder} is found in it")
    mined = _joined(parts)
    numbers = shards.find(mined.query_keys.numpy())
    is_kept_QK = (mined.product_keys != NO_KEY).numpy()
    counts, kept = is_kept_QK.sum(1), mined.product_keys.numpy()[is_kept_QK]
    columns = {
        "query_id": [shards.read_facts(numbers[key])["query_id"] for key in mined.query_keys.tolist()],
        "positive_score": mined.positive_scores.numpy(),
        "negative_ids": to_lists(name_products(kept, known), counts),
        "scores": to_lists(mined.scores.numpy(), counts),
    }
    write_negatives(Path(config["output"]), columns)
    return mined


def _direction(config: Mapping[str, Any], wanted: str | None, gallery: str, place: str) -> Direction:
    """Return the direction that is mined: the wanted one, or the first that ranks the index's gallery, as monitored."""
    from mim_lightning.types import Direction

    found = {name: Direction(**ends) for name, ends in config["directions"].items() if ends is not None}
    fitting = [name for name, direction in found.items() if direction.gallery == gallery]
    monitored = str(config.get("monitor", "")).split("/")[1:2]
    if wanted is None and fitting:
        return found[next((name for name in monitored if name in fitting), fitting[0])]
    if wanted not in fitting:
        raise ValueError(
            f"mining.direction={'null' if wanted is None else wanted}: index={place} holds '{gallery}', which "
            f"{', '.join(fitting) or 'no direction'} ranks; give another index, built with gallery=<tower or fusion>"
        )
    return found[wanted]


def _keys_of(product_ids: np.ndarray, known: dict[int, str]) -> np.ndarray:
    """Return the keys of products, NO_KEY of "", and add them to those that are known."""
    ids, places = np.unique(product_ids.astype(str), return_inverse=True)
    keys = [hash_id(one) if one else NO_KEY for one in ids.tolist()]
    known |= dict(zip(keys, ids.tolist(), strict=True))
    return np.array(keys, dtype=np.int64)[places].reshape(product_ids.shape)


def _joined(parts: list[MinedNegatives]) -> MinedNegatives:
    def join(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return type(parts[0])(**{f.name: join(f.name) for f in fields(parts[0])})
