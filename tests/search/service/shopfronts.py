"""A shop of coloured squares with a model that knows colours: quick, exact, and easy to foresee."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from torch import Tensor

from mim_lightning.data.preparation.small_set import write_shard_set
from mim_lightning.data.shards.writer import Record
from mim_lightning.inference.image_inputs import prepare_images
from mim_lightning.search.facets import FACETS, describe_facets
from mim_lightning.search.index.factory import build_index
from mim_lightning.search.index.interface import ProductIndex
from mim_lightning.search.index.settings import IndexSettings, ModelFacts
from mim_lightning.search.product_images import CATALOGS, ProductImages
from mim_lightning.search.searcher import Searcher
from mim_lightning.search.service.app import ROUTES
from mim_lightning.search.service.batching import BatchingEncoder
from mim_lightning.search.service.limits import Limits
from mim_lightning.search.service.pixel_budget import PixelBudget
from mim_lightning.search.service.shopfront import Engine, Shopfront
from mim_lightning.search.service.telemetry import Telemetry
from mim_lightning.types import ImageSpec

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200), "grey": (128, 128, 128)}
FINGERPRINT = "c010" * 4


def square(colour: str, kind: str = "JPEG", side: int = 32) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), COLOURS[colour]).save(out, kind)
    return out.getvalue()


class ColourModel:
    """Embeds a picture as its mean colour, a text as the colours that it names."""

    fingerprint = FINGERPRINT
    fusions: dict[str, dict[str, float]] = {"query": {"query_image": 1.0, "query_text": 1.0}}  # noqa: RUF012

    def prepare_images(self, images: Sequence[bytes]) -> Tensor:
        return prepare_images(images, ImageSpec((4, 4)), 512, range(len(images)))

    def embed_prepared(self, prepared: Tensor) -> np.ndarray:
        return _unit(prepared.flatten(2).float().mean(2).numpy())

    def embed_texts(self, texts: Sequence[str], tower: str | None = None) -> np.ndarray:
        named = [[COLOURS[word] for word in text.split() if word in COLOURS] or [(1, 1, 1)] for text in texts]
        return _unit(np.array([np.mean(colours, axis=0) for colours in named]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def colour_index(folder: Path) -> ProductIndex:
    """Four products of one colour each, with pictures, a category and a price."""
    products = [
        {"product_id": f"{colour}-1", "title": f"A {colour} square", "category": "warm" if colour == "red" else "cold"}
        for colour in COLOURS
    ]
    records = [
        Record({"product_image": square(colour)}, {**product, "product_text": product["title"]})
        for colour, product in zip(COLOURS, products, strict=True)
    ]
    write_shard_set(folder / "catalogue", records, len(records), samples_per_shard=10)
    table = pa.Table.from_pylist([{**product, "price": 10.0 * row} for row, product in enumerate(products)])
    model = ColourModel()
    vectors = model.embed_prepared(model.prepare_images([square(colour) for colour in COLOURS]))
    extra = {CATALOGS: [str(folder / "catalogue")], FACETS: describe_facets(table)}
    facts = ModelFacts(FINGERPRINT, "product_image", 3)
    ids = [product["product_id"] for product in products]
    return build_index(vectors, ids, table, IndexSettings(kind="flat"), facts, folder / "index", extra)


def colour_shop(folder: Path, arms: Sequence[str] = ("default",), experiment: Any = None, **limits: int) -> Shopfront:
    index, telemetry, budget = colour_index(folder), Telemetry(ROUTES), PixelBudget(10_000_000)
    engines = {
        name: Engine(
            name,
            Searcher(BatchingEncoder(ColourModel(), on_batch=telemetry.observe_batch, budget=budget), index),
            ProductImages(index.card),
        )
        for name in arms
    }
    return Shopfront(engines, Limits(**limits), telemetry, experiment)
