"""The synthetic world as files: two tables and their pictures, ready for the manifest.

In come a folder, counts and a seed; out go products.csv, queries.csv, images/shop and images/street. Called by
the data preparation and by tests. Every picture has its own random source, named after its row, so the same
arguments give the same bytes however many processes draw.
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

from mim_lightning.data.synthetic.catalog import MAX_PRODUCTS, SPLITS, Product, Query, build_products, build_queries
from mim_lightning.data.synthetic.item import Look, draw_catalogue_picture
from mim_lightning.data.synthetic.scene import draw_street_picture

PICTURES_PER_PROCESS = 400  # fewer are drawn sooner than another process starts
CHUNK_SIZE = 32  # pictures handed to a process at once
SHOP_QUALITY = 92  # JPEG
STREET_QUALITY = (70, 90)
IMAGE_SIZES = (32, 1024)


@dataclass(frozen=True)
class Picture:
    """One picture to draw; all that a worker process needs to know."""

    path: Path
    look: Look
    side: int
    size: str | None  # as the catalogue shows it; None for a street picture, which does not tell
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
    """Write a small shop with its shoppers, and return the paths of its products and queries tables.

    `image_size` is in pixels, `change_share` the share of queries that ask for another product than the photo
    shows; `num_processes` changes the speed only (None: what the machine and the number of pictures suggest).

    Raises:
        ValueError: an argument is out of range.
    """
    check_range("num_products", num_products, 2, MAX_PRODUCTS)
    check_range("train_queries_per_product", train_queries_per_product, 1, None)
    check_range("val_queries_per_product", val_queries_per_product, 1, None)
    check_range("image_size", image_size, *IMAGE_SIZES)
    check_range("change_share", change_share, 0, 1)
    check_range("num_processes", 1 if num_processes is None else num_processes, 1, None)
    products = build_products(num_products, seed)
    counts = dict(zip(SPLITS, (train_queries_per_product, val_queries_per_product), strict=True))
    queries = [query for split in SPLITS for query in build_queries(products, split, counts[split], change_share, seed)]
    write_pictures(list_pictures(folder, products, queries, image_size, seed), num_processes)
    return write_table(folder / "products.csv", products), write_table(folder / "queries.csv", queries)


def check_range(name: str, value: float, low: float, high: float | None) -> None:
    if value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be {limits}, not {value}")


def list_pictures(
    folder: Path, products: Sequence[Product], queries: Sequence[Query], side: int, seed: int
) -> list[Picture]:
    """List the catalogue picture of each product and the street picture of each query."""
    looks = {product.product_id: product.look for product in products}
    shop = [Picture(folder / product.image, product.look, side, product.size, "") for product in products]
    street = [
        Picture(folder / query.image, looks[query.shown_product_id], side, None, f"{query.query_id}-{seed}")
        for query in queries
    ]
    return shop + street


def write_pictures(pictures: Sequence[Picture], num_processes: int | None) -> None:
    """Draw all pictures, in several processes where that pays."""
    for parent in {picture.path.parent for picture in pictures}:
        parent.mkdir(parents=True, exist_ok=True)
    if num_processes is None:
        num_processes = max(1, min(os.cpu_count() or 1, len(pictures) // PICTURES_PER_PROCESS))
    if num_processes == 1:
        for picture in pictures:
            write_picture(picture)
        return
    # Spawned, because the caller may hold threads (a trainer, a tokeniser) that a fork would not survive.
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(write_picture, pictures, chunksize=CHUNK_SIZE):
            pass


def write_picture(picture: Picture) -> None:
    """Draw one picture and write it as JPEG."""
    if picture.size is not None:
        image = draw_catalogue_picture(picture.look, picture.size, picture.side)
        image.save(picture.path, quality=SHOP_QUALITY)
        return
    rng = random.Random(picture.seed)
    image = draw_street_picture(picture.look, picture.side, rng)
    image.save(picture.path, quality=rng.randint(*STREET_QUALITY))


def write_table(path: Path, rows: Sequence[Product] | Sequence[Query]) -> Path:
    """Write rows as CSV with a header; called after the pictures, so that a table never names a missing file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return path
