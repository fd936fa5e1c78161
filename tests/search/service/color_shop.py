"""A catalog of colored squares, and a model that embeds colors: fast and predictable."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from torch import Tensor

from mim_lightning.data.shards.shard_writer import Record
from mim_lightning.inference.detector import SuggestedBox
from mim_lightning.inference.image_inputs import prepare_images
from mim_lightning.search.facets import FACETS, describe_facets
from mim_lightning.search.index.factory import create_index
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts
from mim_lightning.search.index.interface import ProductIndex
from mim_lightning.search.product_images import CATALOGS, ProductImages
from mim_lightning.search.searcher import Searcher
from mim_lightning.search.service.app import ROUTES
from mim_lightning.search.service.batching import BatchingEncoder
from mim_lightning.search.service.prometheus import ServiceMetrics
from mim_lightning.search.service.request_limits import Limits, PixelBudget
from mim_lightning.search.service.search_service import Engine, SearchService
from mim_lightning.types import ImageSpec
from tests.shard_sets import write_shard_set

COLORS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200), "grey": (128, 128, 128)}
FINGERPRINT = "c010" * 4


def square(color: str, kind: str = "JPEG", side: int = 32) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), COLORS[color]).save(out, kind)
    return out.getvalue()


class ColorModel:
    """Embeds an image as its mean color, a text as the colors that it names."""

    fingerprint = FINGERPRINT
    reads_together = False
    fusions: dict[str, dict[str, float]] = {"query": {"query_image": 1.0, "query_text": 1.0}}  # noqa: RUF012

    def prepare_images(self, images: Sequence[bytes]) -> Tensor:
        return prepare_images(images, ImageSpec((4, 4)), 512, range(len(images)))

    def embed_prepared(self, prepared: Tensor) -> np.ndarray:
        return _unit(prepared.flatten(2).float().mean(2).numpy())

    def embed_texts(self, texts: Sequence[str], tower: str | None = None) -> np.ndarray:
        named = [[COLORS[word] for word in text.split() if word in COLORS] or [(1, 1, 1)] for text in texts]
        return _unit(np.array([np.mean(colors, axis=0) for colors in named]))


class HalvesDetector:
    """Suggests the upper and the lower half of every image."""

    def suggest(self, pixels: np.ndarray) -> list[SuggestedBox]:
        return [SuggestedBox((0, 0, 1, 0.5), 0.9, "cup"), SuggestedBox((0, 0.5, 1, 1), 0.4)]


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def color_index(folder: Path) -> ProductIndex:
    """Four products of one color each, with images, a category and a price."""
    products = [
        {"product_id": f"{color}-1", "title": f"A {color} square", "category": "warm" if color == "red" else "cold"}
        for color in COLORS
    ]
    records = [
        Record({"product_image": square(color)}, {**product, "product_text": product["title"]})
        for color, product in zip(COLORS, products, strict=True)
    ]
    write_shard_set(folder / "catalogue", records, len(records), samples_per_shard=10)
    table = pa.Table.from_pylist([{**product, "price": 10.0 * row} for row, product in enumerate(products)])
    model = ColorModel()
    vectors = model.embed_prepared(model.prepare_images([square(color) for color in COLORS]))
    extra = {CATALOGS: [str(folder / "catalogue")], FACETS: describe_facets(table)}
    facts = ModelFacts(FINGERPRINT, "product_image", 3)
    ids = [product["product_id"] for product in products]
    return create_index(vectors, ids, table, IndexSettings(kind="flat"), facts, folder / "index", extra)


def color_service(
    folder: Path, arms: Sequence[str] = ("default",), experiment: Any = None, detector: Any = None, **limits: int
) -> SearchService:
    index, metrics, budget = color_index(folder), ServiceMetrics(ROUTES), PixelBudget(10_000_000)
    engines = {
        name: Engine(
            name,
            Searcher(BatchingEncoder(ColorModel(), on_batch=metrics.observe_batch, budget=budget), index),
            ProductImages(index.card),
        )
        for name in arms
    }
    return SearchService(engines, Limits(**limits), metrics, experiment, budget=budget, detector=detector)
