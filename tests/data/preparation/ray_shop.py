"""A small shop for preparations by Ray: its tables, and what is prepared of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from mim_lightning.data.manifest.manifest import ManifestSource
from tests.data.conftest import jpeg

NUM_PRODUCTS = 14


def table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_shop(folder: Path, num_queries: int = 40) -> Path:
    """Write two tables of several files: products of no to two images, queries of one or two products, three splits."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(NUM_PRODUCTS):
        (pictures / f"{number}.jpg").write_bytes(jpeg(number, 12, 16))
    products = [
        {
            "product_id": f"p{number}",
            "image": [str(pictures / f"{number}.jpg"), str(pictures / f"{13 - number}.jpg")][: number % 3],
            "title": f"product {number}",
            "category": f"c{number % 4}",
            "price": 1.5 * number,
        }
        for number in range(NUM_PRODUCTS)
    ]
    queries = [
        {
            "query_id": f"q{number}",
            "split": "val" if number % 8 == 3 else "test" if number == 8 else "train",
            "image": str(pictures / f"{number % 5}.jpg"),
            "text": "wanted" if number % 2 else None,
            "product_id": [f"p{number % NUM_PRODUCTS}", "p2"][: 1 + number % 2],
            "shown_product_id": "p5" if number % 7 == 0 else None,
            "weight": 1.0 + number % 2,
        }
        for number in range(num_queries)
    ]
    for i in range(2):
        table(folder / "shop" / "products" / f"{i}.parquet", products[i::2])
    for i in range(2):
        table(folder / "shop" / "queries" / f"part={i}" / "rows.parquet", queries[i::2])
    return folder / "shop"


def source_of(shop: Path | str) -> ManifestSource:
    columns = {"queries": {"text": "text", "grade": None}}  # as they come from config: some are called as ours
    return ManifestSource(f"{shop}/products", f"{shop}/queries", columns)


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.tar"))}
