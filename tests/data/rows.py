"""Training sets that are only columns: what an order sees of a set, without images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mim_lightning.types import NO_KEY


class ColumnSet:
    """A stand-in for a ShardSet with columns and no samples."""

    def __init__(self, sizes: list[int], **columns: np.ndarray) -> None:
        self.sizes, self.columns, self.folder, self.max_relevant = sizes, columns, Path("columns"), 1

    def __len__(self) -> int:
        return sum(self.sizes)

    def column(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise ValueError(f"{self.folder}: has no {name}.npy; run prepare again")
        return self.columns[name]


def random_sizes(rng: np.random.Generator, most: int = 30) -> list[int]:
    return rng.integers(1, most, rng.integers(1, 12)).tolist()


def shop_columns(rng: np.random.Generator, num_rows: int, num_products: int, num_categories: int) -> dict[str, Any]:
    """Return product and category keys of rows: products of uneven size, some rows without either."""
    products = rng.integers(0, rng.integers(1, num_products + 1, num_rows))
    categories = products % num_categories
    products = np.where(rng.random(num_rows) < 0.05, NO_KEY, products)
    categories = np.where(rng.random(num_rows) < 0.05, NO_KEY, categories)
    return {"product_keys": products, "category_keys": categories}
