"""Time to add 1 % to prepared data and to bring an index to it, against preparing and indexing everything again.

    python benchmarks/growing.py --output experiments/scale/growing/results.json

Draws random pictures, prepares them with one process, trains a tiny model for two steps, and builds an index of the
catalog; then adds 1 % in several turns, and at last prepares and indexes all rows again in a folder of their own. CPU
seconds of this one process are measured, in which all of it runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from record import add_output, write_record

from mim_lightning.build_index import build_index
from mim_lightning.config import compose
from mim_lightning.data.preparation.prepared import open_prepared
from mim_lightning.prepare import prepare
from mim_lightning.run import identify
from mim_lightning.train import train

SIDE = 128  # pixels of a picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_output(parser)
    parser.add_argument("--products", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=2, help="of each product")
    parser.add_argument("--turns", type=int, default=3, help="additions of 1 %%")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="growing-"))
    try:
        results = measure(root, arguments.products, arguments.queries, arguments.turns)
    finally:
        shutil.rmtree(root)
    write_record(arguments.output, results)
    print(json.dumps(results, indent=2))


def measure(root: Path, num_products: int, num_queries: int, turns: int) -> dict[str, Any]:
    one_percent = max(1, num_products // 100)
    sizes = [num_products, *(one_percent for _ in range(turns))]
    parts, first = [], 0
    for idx, size in enumerate(sizes):
        parts.append(write_tables(root, str(idx), range(first, first + size), num_queries))
        first += size
    whole = write_tables(root, "whole", range(first), num_queries, draws=False)
    shop, other = root / "shop", root / "other"
    prepared = timed(lambda: prepare_tables(shop, whole=parts[0]))
    checkpoint = train_tiny(root, shop, parts[0])
    indexed = timed(lambda: index(checkpoint, shop, root / "index"))
    added, updated = [], []
    for products, queries in parts[1:]:
        tables = [f"add.products={products}", f"add.queries={queries}"]
        added.append(timed(lambda tables=tables: change(shop, tables)))
        updated.append(timed(lambda: index(checkpoint, shop, root / "index", "update=true")))
    again = timed(lambda: prepare_tables(other, whole=whole))
    indexed_again = timed(lambda: index(checkpoint, other, root / "index-again"))
    rows = [len(open_prepared(folder).catalog()) for folder in (shop, other)]
    assert rows[0] == rows[1] == first
    return {
        "products": num_products,
        "queries": num_products * num_queries,
        "percent_added": 100 * one_percent / num_products,
        "cpu_seconds": {
            "prepare_first": prepared,
            "add": statistics.median(added),
            "prepare_again": again,
            "index_first": indexed,
            "index_update": statistics.median(updated),
            "index_again": indexed_again,
        },
        "turns": {"add": added, "index_update": updated},
    }


def timed(call: Callable[[], Any]) -> float:
    """Return the CPU seconds of a call: other processes on the machine do not change them."""
    started = time.process_time()
    call()
    return time.process_time() - started


def write_tables(root: Path, name: str, numbers: range, num_queries: int, *, draws: bool = True) -> tuple[Path, Path]:
    """Write tables of products and queries, and their pictures."""
    products, queries = [], []
    for number in numbers:
        products.append({"product_id": f"p{number}", "image": f"p{number}.jpg", "title": f"Product {number}"})
        names = [f"q{number}-{query}" for query in range(num_queries)]
        queries += [
            {"query_id": one, "split": "val" if number % 50 == 0 else "train", "image": f"{one}.jpg"}
            | {"product_id": f"p{number}"}
            for one in names
        ]
        if draws:
            for idx, one in enumerate([f"p{number}", *names]):
                draw(number * 100 + idx).save(root / f"{one}.jpg", quality=85)
    return write_csv(root / f"{name}-products.csv", products), write_csv(root / f"{name}-queries.csv", queries)


def draw(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def source(folder: Path, tables: tuple[Path, Path]) -> list[str]:
    paths = [f"data.source.products={tables[0]}", f"data.source.queries={tables[1]}"]
    columns = ["data.source.columns.queries.text=null"]
    return ["data=manifest", f"data.folder={folder}", *paths, *columns, "data.num_workers=0", "data.batch_size=64"]


def prepare_tables(folder: Path, whole: tuple[Path, Path]) -> None:
    prepare(compose("prepare", [*source(folder, whole), "num_workers=1", "data.validation.num_processes=1"]))


def change(folder: Path, tables: list[str]) -> None:
    options = ["data=shards", f"data.folder={folder}", "num_workers=1", "data.validation.num_processes=1"]
    prepare(compose("prepare", [*options, *tables]))


def train_tiny(root: Path, folder: Path, tables: tuple[Path, Path]) -> Path:
    small = ["encoder.image.image_size=64", "trainer=cpu", "trainer.max_epochs=1", "+trainer.limit_train_batches=2"]
    config = compose("train", [*source(folder, tables), *small, f"paths.runs={root}/runs", "model=3tower"])
    train(config)
    return identify(config)[0].best_checkpoint


def index(checkpoint: Path, folder: Path, place: Path, *more: str) -> None:
    options = ["data=shards", f"data.folder={folder}", "data.num_workers=0", "trainer=cpu", "index.kind=flat"]
    build_index(compose("build_index", [f"checkpoint={checkpoint}", f"output={place}", *options, *more]))


if __name__ == "__main__":
    main()
