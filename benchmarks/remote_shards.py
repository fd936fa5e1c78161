"""Measure the loader on shards behind a slow link against the same shards in a folder.

The store (`slow_store.py`) waits before each answer and limits each connection. Sides take turns: *folder*; *cold*, a
first pass with an empty cache; *warm*, whose cache holds the set; *small cache*, whose cache holds a part of it, from
its second epoch on, always after an epoch that is not timed. Each reads the same rows in the same order, once with all
the work of training (two images decoded, cropped and resized, two texts tokenized) and once as bytes alone. Prints rows
a second, the ratio to the folder (median over rounds, lowest and highest), the wait for the first batch, and what was
downloaded; `--output` also writes JSON.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from data import AUGMENT, record
from machine import cpu_seconds, describe_machine
from photos import read_photos
from record import add_output, table, write_record
from slow_store import Link, SlowStore, serve_slowly

from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.loading.loader import StreamLoader
from mim_lightning.data.sampling.shuffled import ShuffledOrder
from mim_lightning.data.shards.cache import CacheSettings
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.encoders.tiny import HashTokenize
from mim_lightning.types import ImageSpec, TextSpec
from tests.shard_sets import write_shard_set

SIDES = ("folder", "cold", "warm", "small cache")


class Pass(NamedTuple):
    """One epoch."""

    seconds: float
    first_batch: float  # seconds until it came
    cpu: float  # CPU seconds of this process and its workers
    num_bytes: int  # sent by the store
    num_requests: int
    store_cpu: float


def main() -> None:
    wishes = read_wishes()
    torch.set_num_threads(1)
    link = Link(wishes.latency / 1e3, wishes.bandwidth * 1e6)
    with tempfile.TemporaryDirectory(dir=wishes.scratch) as scratch:
        root = Path(scratch)
        photos = read_photos(wishes.photos, 2 * wishes.rows)
        write_rows(root / "store" / "set", photos, wishes)
        with serve_slowly(root / "store", link) as store:
            set_environment(store)
            results = {work: compare(root, store, work, wishes) for work in wishes.work}
        facts = describe(ShardSet(root / "store" / "set"), wishes)
        for child in multiprocessing.active_children():  # they download for the next epoch
            child.kill()
            child.join()
    print("\n".join(lines_of(results, facts)))
    write_record(wishes.output, {"facts": facts, "results": results})


def read_wishes() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of .jpg photos; default: the drawn shop at 256 pixels")
    parser.add_argument("--rows", type=int, default=12288, help="rows of a pass")
    parser.add_argument("--samples-per-shard", type=int, default=384)
    parser.add_argument("--window", type=int, default=4, help="shards that are shuffled together")
    parser.add_argument("--cache-fraction", type=float, default=0.4, help="of the set, that the small cache holds")
    parser.add_argument("--batch-size", type=int, default=128, help="rows")
    parser.add_argument("--image-size", type=int, default=224, help="pixels a side, after the crop")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of every side")
    parser.add_argument("--rounds", type=int, default=5, help="passes of every side")
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--work", nargs="+", default=["decoded", "bytes"], choices=["decoded", "bytes"])
    parser.add_argument("--scheme", default="s3", choices=["s3", "http"], help="dialect in which the store is read")
    parser.add_argument("--latency", type=float, default=20.0, help="ms from a request to its answer")
    parser.add_argument("--bandwidth", type=float, default=50.0, help="MB/s of each connection")
    parser.add_argument("--scratch", type=Path, help="where shards and caches are written; default: the system's place")
    add_output(parser)
    return parser.parse_args()


def set_environment(store: SlowStore) -> None:
    os.environ |= {
        "AWS_ENDPOINT_URL": store.address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def write_rows(folder: Path, photos: Sequence[bytes], wishes: argparse.Namespace) -> None:
    records = (record(photos, number, number) for number in range(wishes.rows))
    write_shard_set(folder, records, wishes.rows, wishes.samples_per_shard)


# --- the sides


class Side:
    """A loader, and the cache that it reads through."""

    def __init__(self, name: str, root: Path, store: SlowStore, work: str, wishes: argparse.Namespace) -> None:
        self.name, self.store, self.root, self.work, self.wishes = name, store, root, work, wishes
        self.cache = root / f"{work}, {name}"
        self.num_rows = wishes.rows
        self._loader: StreamLoader | None = None

    def run(self) -> Pass:
        if self.name == "cold" and self._loader is not None:
            self._loader.ranks.stop()
            self._loader = None
            shutil.rmtree(self.cache, ignore_errors=True)
            self.cache = self.cache.with_name(f"{self.cache.name}'")
        if self.name == "small cache" and self._loader is not None:
            sum(len(batch) for batch in self._loader)  # what was downloaded while other sides had their turn is used up
        started, used, before = time.perf_counter(), cpu_seconds(), self.store.traffic
        self._loader = self._loader or self._make_loader()
        num_rows, first_batch = 0, 0.0
        for batch in self._loader:
            first_batch = first_batch or time.perf_counter() - started
            num_rows += len(batch)
        if num_rows != self.num_rows:
            raise SystemExit(f"{self.name} read {num_rows} rows of {self.num_rows}")
        seconds, spent, after = time.perf_counter() - started, cpu_seconds() - used, self.store.traffic
        return Pass(
            seconds,
            first_batch,
            spent,
            after.num_bytes - before.num_bytes,
            after.num_requests - before.num_requests,
            after.cpu - before.cpu,
        )

    def _make_loader(self) -> StreamLoader:
        wishes = self.wishes
        folder = self.root / "store" / "set"
        if self.name == "folder":
            shards = ShardSet(folder)
        else:
            num_bytes = sum(path.stat().st_size for path in folder.iterdir())
            limit = int(num_bytes * (wishes.cache_fraction if self.name == "small cache" else 2))
            address = "s3://set" if wishes.scheme == "s3" else f"{self.store.address}/set"
            shards = ShardSet(address, CacheSettings(str(self.cache), limit, prefetch_shards=wishes.window))
        order = ShuffledOrder(tuple(shards.sizes), wishes.batch_size, seed=1, window=wishes.window)
        return StreamLoader(shards, make_collate(shards, self.work, wishes), order, num_workers=wishes.workers)


def make_collate(shards: ShardSet, work: str, wishes: argparse.Namespace) -> Collate:
    if work == "bytes":
        return Collate({}, shards.max_relevant)  # reads the samples, and leaves their images as they are
    text = TextSpec(HashTokenize(32, 4094), 32)
    image = ImageSpec((wishes.image_size, wishes.image_size))
    specs = {"query_image": image, "product_image": image, "product_text": text, "query_text": text}
    return Collate(specs, shards.max_relevant, AUGMENT)


def compare(root: Path, store: SlowStore, work: str, wishes: argparse.Namespace) -> dict[str, list[Pass]]:
    """Return the passes of each side, by round."""
    sides = {name: Side(name, root, store, work, wishes) for name in wishes.sides}
    passes: dict[str, list[Pass]] = {name: [] for name in sides}
    names = list(sides)
    for round_idx in range(wishes.rounds + 1):
        for name in names[round_idx % len(names) :] + names[: round_idx % len(names)]:
            found = sides[name].run()
            if round_idx or name == "cold":  # the first starts workers and fills the caches
                passes[name].append(found)
    return passes


# --- the table


def describe(shards: ShardSet, wishes: argparse.Namespace) -> dict[str, Any]:
    num_bytes = sum(Path(shards.shard_name(idx)).stat().st_size for idx in range(len(shards.sizes)))
    return {
        "machine": describe_machine(),
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        "photos": str(wishes.photos.name) if wishes.photos else "drawn",
        "num_bytes": num_bytes,
        "num_shards": len(shards.sizes),
        **{name: getattr(wishes, name) for name in ("rows", "batch_size", "image_size", "workers", "rounds", "window")},
        **{name: getattr(wishes, name) for name in ("cache_fraction", "scheme", "latency", "bandwidth")},
    }


def lines_of(results: dict[str, dict[str, list[Pass]]], facts: dict[str, Any]) -> list[str]:
    headings = ["work", "side", "rows/s", "of the folder's", "CPU time to the folder's", "first batch, s"]
    headings += ["downloaded, of the set", "MB/s from the store", "store CPU, cores"]
    rows = [
        [work, name, *cells_of(found, passes["folder"], facts)]
        for work, passes in results.items()
        for name, found in passes.items()
    ]
    note = (
        f"Median of {facts['rounds']} rounds (lowest to highest) of {facts['rows']:,} rows of two {facts['photos']} "
        f"pictures and two texts, {facts['num_bytes'] / 1e6:,.0f} MB in {facts['num_shards']} shards, shuffled in "
        f"windows of {facts['window']}; the small cache holds {facts['cache_fraction']:.0%} of them; "
        f"{facts['scheme']}://, {facts['latency']:g} ms a request, {facts['bandwidth']:g} MB/s a connection; batches "
        f"of {facts['batch_size']}, {facts['image_size']} pixels, {facts['workers']} workers; {facts['machine']}; "
        f"{facts['versions']}"
    )
    return table(headings, rows, note, num_left=2)


def cells_of(found: Sequence[Pass], folder: Sequence[Pass], facts: dict[str, Any]) -> list[str]:
    seconds = median(one.seconds for one in found)
    rounds = list(zip(found[-len(folder) :], folder, strict=True))
    ratios = sorted(local.seconds / one.seconds for one, local in rounds)
    spent = median(one.cpu / max(0.01, local.cpu) for one, local in rounds)  # a tick of the clock
    downloaded = median(one.num_bytes for one in found)
    return [
        f"{facts['rows'] / seconds:,.0f}",
        "" if found is folder else f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        "" if found is folder else f"{spent:.2f}",
        f"{median(one.first_batch for one in found):.2f}",
        f"{downloaded / facts['num_bytes']:.0%}",
        f"{downloaded / seconds / 1e6:,.0f}",
        f"{median(one.store_cpu / one.seconds for one in found):.2f}",
    ]


if __name__ == "__main__":
    main()
