"""Files of the synthetic shop: products.csv, queries.csv, images/shop and images/street.

Every image has its own random generator, seeded by the id of its row: the same arguments give the same bytes with any
number of processes.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from mim_lightning.data.synthetic.catalog import (
    MAX_PRODUCTS,
    SPLITS,
    SyntheticProduct,
    SyntheticQuery,
    build_products,
    build_queries,
)
from mim_lightning.data.synthetic.item import Look, draw_catalog_image
from mim_lightning.data.synthetic.scene import draw_street_image

IMAGES_PER_PROCESS = 400  # fewer are drawn before another process has started
CHUNK_SIZE = 32  # images sent to a process at once
SHOP_QUALITY = 92  # JPEG
STREET_QUALITY = (70, 90)
IMAGE_SIZES = (32, 1024)


@dataclass(frozen=True)
class ImageTask:
    """An image to draw."""

    path: Path
    look: Look
    side: int
    size: str | None  # of the product in a catalog image; None: a street image
    seed: str


def write_synthetic_world(
    folder: Path,
    num_products: int = 240,
    train_queries_per_product: int = 10,
    val_queries_per_product: int = 2,
    image_size: int = 96,
    change_share: float = 0.4,
    seed: int = 0,
    num_processes: int | None = None,
) -> tuple[Path, Path]:
    """Write tables and images, and return the paths of the products and queries tables.

    Args:
        image_size: side in pixels.
        change_share: fraction of the queries whose target is another product than the one in the photo.
        num_processes: changes the speed only; None: by the number of cores and images.

    Raises:
        ValueError: an argument is out of range.
    """
    _validate_range("num_products", num_products, 2, MAX_PRODUCTS)
    _validate_range("train_queries_per_product", train_queries_per_product, 1, None)
    _validate_range("val_queries_per_product", val_queries_per_product, 1, None)
    _validate_range("image_size", image_size, *IMAGE_SIZES)
    _validate_range("change_share", change_share, 0, 1)
    _validate_range("num_processes", 1 if num_processes is None else num_processes, 1, None)
    products = build_products(num_products, seed)
    counts = dict(zip(SPLITS, (train_queries_per_product, val_queries_per_product), strict=True))
    queries = [query for split in SPLITS for query in build_queries(products, split, counts[split], change_share, seed)]
    _write_images(_list_images(folder, products, queries, image_size, seed), num_processes)
    return _write_table(folder / "products.csv", products), _write_table(folder / "queries.csv", queries)


def _validate_range(name: str, value: float, low: float, high: float | None) -> None:
    if value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be {limits}, not {value}")


def _list_images(
    folder: Path, products: Sequence[SyntheticProduct], queries: Sequence[SyntheticQuery], side: int, seed: int
) -> list[ImageTask]:
    """Return the catalog image of each product and the street image of each query."""
    looks = {product.product_id: product.look for product in products}
    shop = [ImageTask(folder / product.image, product.look, side, product.size, "") for product in products]
    street = [
        ImageTask(folder / query.image, looks[query.shown_product_id], side, None, f"{query.query_id}-{seed}")
        for query in queries
    ]
    return shop + street


def _write_images(tasks: Sequence[ImageTask], num_processes: int | None) -> None:
    """Draw all images, in several processes if there are many."""
    for parent in {task.path.parent for task in tasks}:
        parent.mkdir(parents=True, exist_ok=True)
    if num_processes is None:
        num_processes = max(1, min(os.cpu_count() or 1, len(tasks) // IMAGES_PER_PROCESS))
    if num_processes == 1:
        for task in tasks:
            _write_image(task)
        return
    # spawned: the caller may have threads (a trainer's, a tokenizer's) that a fork would not survive
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(_write_image, tasks, chunksize=CHUNK_SIZE):
            pass


def _write_image(task: ImageTask) -> None:
    """Draw an image and write it as JPEG."""
    if task.size is not None:
        draw_catalog_image(task.look, task.size, task.side).save(task.path, quality=SHOP_QUALITY)
        return
    rng = random.Random(task.seed)
    image = draw_street_image(task.look, task.side, rng)
    image.save(task.path, quality=rng.randint(*STREET_QUALITY))


def _write_table(path: Path, rows: Sequence[SyntheticProduct] | Sequence[SyntheticQuery]) -> Path:
    """Write rows as CSV with a header; after the images, so that a table never names a missing file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return path
