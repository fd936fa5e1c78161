"""The index of a catalog as conf/build_index.yaml describes it: embedded and built, changed, and calibrated again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.catalog_embedding import embed_set
from mim_lightning.config import build, construct
from mim_lightning.data.images.crops import CropSettings
from mim_lightning.fields import PRODUCT, side_of
from mim_lightning.index_calibration import calibrate_again, stored_settings
from mim_lightning.inference.loading import choose_device, to_device
from mim_lightning.search import index_builder as builder
from mim_lightning.search.results import print_card
from mim_lightning.search.size_cost import read_curve_of_new_index

if TYPE_CHECKING:
    from mim_lightning.search.index.card import IndexCard


def index_catalog(config: dict[str, Any]) -> IndexCard | None:
    """Embed a catalog, and build an index of it or add it to an existing one; print and return its card.

    Args:
        config: as of conf/build_index.yaml.

    Returns:
        None on all processes but the first, which builds the index.

    Raises:
        ValueError: settings that do not go together, or with the gallery; an index of another model.
    """
    place, settings = config["output"], build(config["index"])
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
    if made is None:
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
