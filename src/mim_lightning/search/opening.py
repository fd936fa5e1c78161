"""An index and the model it was built with, opened and tried together.

The place of an index comes in, a Searcher goes out; the search and serve doors call it. What the index's card says of
its model is followed unless another place is given, and the canaries are encoded again before anybody searches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mim_lightning.inference.hub import is_hub_path
from mim_lightning.inference.model import LoadedModel, load
from mim_lightning.io.file_name import validate_file_name, validate_inside
from mim_lightning.search.canaries import check_canaries, read_canaries
from mim_lightning.search.index.card import IndexCard
from mim_lightning.search.index.product_index import ProductIndex, is_address, open_index
from mim_lightning.search.searcher import QueryEncoder, Searcher

MODEL, CANARIES = "model", "canaries"  # keys of the card's `extra`: place of the model, name of the file


def open_searcher(
    place: str,
    checkpoint: str | None = None,
    weights: Mapping[str, float] | None = None,
    encoder: Callable[[LoadedModel], QueryEncoder] = lambda model: model,
    **options: Any,
) -> Searcher:
    """Open an index with its model.

    Args:
        place: folder, or Milvus address.
        checkpoint: where the model is; None: where it was when the index was built.
        weights: of the query's parts, instead of the model's own.
        encoder: what is put between searches and model, such as the service's batching.
        options: `device` and `precision` of the model.

    Raises:
        ValueError: index or model are missing, damaged, or not of each other; or the canaries' vectors have changed.
    """
    index = open_index(place)
    model = load(checkpoint or _model_of(index, place), **options)
    searcher = Searcher(encoder(model), index, weights)
    _warm_up(index, model.dimension)
    canaries = index.card.extra.get(CANARIES)
    if canaries and not is_address(place):
        path = Path(place) / validate_file_name(canaries, f"{place}: {CANARIES}")
        check_canaries(model, read_canaries(validate_inside(Path(place), path) if path.exists() else path))
    return searcher


def _warm_up(index: ProductIndex, dimension: int) -> None:
    """Search once: the first time, libraries load parts of themselves for seconds."""
    found = index.search(np.full((1, dimension), dimension**-0.5, dtype=np.float32), 1, with_vectors=True)
    index.products([str(product_id) for product_id in found.product_ids[0] if product_id])


def _model_of(index: ProductIndex, place: str) -> str:
    card: IndexCard = index.card
    model = card.extra.get(MODEL)
    if model is None or not (is_hub_path(model) or Path(model).exists()):
        raise ValueError(f"{place}: its model {card.fingerprint} is not at {model}; give checkpoint=<where it is now>")
    return str(model)
