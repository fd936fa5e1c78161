"""Small images, tables and shard sets for the tests of the data package."""

from __future__ import annotations

import csv
import functools
import io
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mim_lightning.data.manifest.manifest import ManifestSource
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.shards.shard_writer import Record
from tests.shard_sets import write_shard_set


def picture(seed: int = 0, height: int = 24, width: int = 32) -> Image.Image:
    """Return soft random colors, which JPEG keeps almost as they are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **({"quality": 95} if kind == "JPEG" else {}) | options)
    return out.getvalue()


@functools.cache  # servers of the tests send the same ones hundreds of times
def jpeg(seed: int = 0, height: int = 24, width: int = 32) -> bytes:
    return encoded(picture(seed, height, width))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def tokenize(texts: Sequence[str]) -> dict[str, Tensor]:
    """Return the code points of each text, padded by 0 to the longest."""
    rows = [torch.tensor([ord(letter) for letter in text] or [0]) for text in texts]
    return {"ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}


PRODUCTS = [
    {
        "product_id": "0012",
        "image": "a.jpg|b.jpg",
        "title": "Red mug",
        "description": "300 ml",
        "category": "mugs",
    },
    {"product_id": "7", "image": "c.jpg", "title": "Blue cup", "description": "", "category": "cups"},
    {"product_id": "x-9", "image": "", "title": "Gift card", "description": "", "category": ""},
]
QUERIES = [
    {"query_id": "q0", "split": "train", "image": "q0.jpg", "text": "", "product_id": "0012"},
    {"query_id": "q1", "split": "train", "image": "q1.jpg", "text": "but blue", "product_id": "7|0012"},
    {"query_id": "q2", "split": "train", "image": "", "text": "a gift", "product_id": "x-9"},
    {"query_id": "q3", "split": "val", "image": "q3.jpg", "text": "", "product_id": "7"},
]


@pytest.fixture
def shop(tmp_path: Path) -> ManifestSource:
    """Three products (two images, one, none) and four queries (photo, both, text; one for validation)."""
    root = tmp_path / "shop"
    root.mkdir()
    for seed, name in enumerate(("a", "b", "c", "q0", "q1", "q3")):
        (root / f"{name}.jpg").write_bytes(jpeg(seed))
    queries = [row | {"shown_product_id": "0012" if row["query_id"] == "q1" else ""} for row in QUERIES]
    products_path = write_csv(root / "products.csv", PRODUCTS)
    return ManifestSource(str(products_path), str(write_csv(root / "queries.csv", queries)))


MakeSet = Callable[..., ShardSet]


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    """Return a function that writes a training set: `num` queries about five products, three shards or so."""

    def make(num: int = 23, samples_per_shard: int = 9) -> ShardSet:
        records = []
        for number in range(num):
            product = number % 5
            images = {"product_image": jpeg(1000 + product, 16, 16)}
            if number % 7 != 3:
                images["query_image"] = jpeg(number, 12, 20)
            facts = {
                "query_id": f"q{number}",
                "product_id": f"p{product}",
                "asked_ids": [f"p{product}"],
                "shown_ids": [f"p{product}"],
                "product_text": f"product {product}",
                "query_text": "wanted" if number % 3 == 0 else None,
                "category": None,
            }
            records.append(Record(images, facts))
        folder = tmp_path / f"set-{num}-{samples_per_shard}-{random.random()}"
        with patch("os.fsync"):  # hundreds of sets a run; none of them has to outlive a power cut
            write_shard_set(folder, records, num, samples_per_shard)
        return ShardSet(folder)

    return make
