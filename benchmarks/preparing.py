"""Measure `prepare`: from tables and photos to validated shards, in images a second and CPU time an image.

Reads photos, or the synthetic shop if none are given. Prints a row for the photos as they are and for each `--side` to
which they are enlarged first, since originals are larger than stored images; `--output` also writes JSON.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from machine import describe_machine
from photos import marked, read_photos
from PIL import Image
from record import add_output, table, write_record

from mim_lightning.data.manifest.manifest import ManifestSource
from mim_lightning.data.preparation.preparation import prepare_shards
from mim_lightning.data.preparation.prepared import ShardSettings


def main() -> None:
    wishes = read_wishes()
    photos = read_photos(wishes.photos, 2 * wishes.rows)
    results = [measure("as they are", photos, wishes)]
    for side in wishes.side:
        print(f"enlarging to {side} pixels", file=sys.stderr)
        results.append(measure(f"{side} pixels", [enlarged(photo, side) for photo in photos], wishes))
    facts = {
        "machine": describe_machine(),
        "versions": f"Pillow {Image.__version__}, Python {platform.python_version()}",
        "photos": wishes.photos.name if wishes.photos else "drawn",
        "processes": wishes.processes,
    }
    print("\n".join(lines_of(results, facts)))
    write_record(wishes.output, {"facts": facts, "results": results})


def read_wishes() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of .jpg photos; default: the drawn shop at 256 pixels")
    parser.add_argument("--rows", type=int, default=4096, help="queries, and products; each has a picture of its own")
    parser.add_argument("--side", type=int, nargs="*", default=[1024], help="pixels of the longer side, to enlarge to")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that check and write")
    add_output(parser)
    return parser.parse_args()


def enlarged(photo: bytes, side: int) -> bytes:
    image = Image.open(BytesIO(photo)).convert("RGB")
    factor, out = side / max(image.size), BytesIO()
    image.resize((round(image.width * factor), round(image.height * factor))).save(out, "JPEG", quality=90)
    return out.getvalue()


def measure(name: str, photos: Sequence[bytes], wishes: argparse.Namespace) -> dict[str, Any]:
    """Return seconds, CPU seconds and bytes of one preparation."""
    with tempfile.TemporaryDirectory() as folder:
        source = write_shop(Path(folder) / "shop", photos, wishes.rows)
        started, used = time.perf_counter(), sum(os.times()[:4])
        with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            prepare_shards(source, Path(folder) / "prepared", ShardSettings(), num_workers=wishes.processes)
        seconds, cpu_seconds = time.perf_counter() - started, sum(os.times()[:4]) - used
        written = sum(path.stat().st_size for path in (Path(folder) / "prepared" / "queries").rglob("*.tar"))
        read = sum(path.stat().st_size for path in (Path(folder) / "shop").rglob("*.jpg"))
    return {
        "photos": name,
        "pictures": 2 * wishes.rows,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "bytes_a_picture": read / (2 * wishes.rows),
        "bytes_a_row": written / wishes.rows,
    }


def write_shop(folder: Path, photos: Sequence[bytes], num_rows: int) -> ManifestSource:
    folder.mkdir()
    names = [f"{number}.jpg" for number in range(2 * num_rows)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(marked(photos[number % len(photos)], number))
    products, queries = folder / "products.csv", folder / "queries.csv"
    write_table(products, "product_id,image,title,category", [f"p{row},{names[row]},x,y" for row in range(num_rows)])
    rows = [f"q{row},train,{names[num_rows + row]},p{row}" for row in range(num_rows)]
    write_table(queries, "query_id,split,image,product_id", rows)
    return ManifestSource(str(products), str(queries))


def write_table(path: Path, head: str, rows: Sequence[str]) -> None:
    path.write_text("\n".join([head, *rows]) + "\n")


def lines_of(results: Sequence[dict[str, Any]], facts: dict[str, Any]) -> list[str]:
    headings = ("photos", "KB a picture", "pictures/s", "CPU ms a picture", "KB a stored row")
    rows = []
    for result in results:
        rate, spent = result["pictures"] / result["seconds"], 1e3 * result["cpu_seconds"] / result["pictures"]
        sizes = [f"{result[name] / 1e3:.1f}" for name in ("bytes_a_picture", "bytes_a_row")]
        rows.append([result["photos"], sizes[0], f"{rate:,.0f}", f"{spent:.2f}", sizes[1]])
    note = (
        f"{results[0]['pictures']:,} {facts['photos']} pictures from tables to verified shards, the check included, "
        f"{facts['processes']} processes; {facts['machine']}; {facts['versions']}"
    )
    return table(headings, rows, note)


if __name__ == "__main__":
    main()
