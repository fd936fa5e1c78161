"""Measure the loader against the same work without one, from memory, and by WebDataset, Pillow and torchvision.

Reads photos, or the synthetic shop if none are given; the defaults take six minutes on two cores. Prints rows a second
and ratios, each the median over rounds in which all sides take turns, with the lowest and the highest; `--output` also
writes JSON. Every side reads rows of two images and two texts, crops, mirrors and resizes the images, and tokenizes
the texts; the consumer of the batches does nothing with them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torchvision
import webdataset
from machine import cpu_seconds, describe_machine
from photos import marked, read_photos
from PIL import Image
from record import add_output, table, write_record
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from mim_lightning.data.images.transforms import Augment
from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.loading.loader import StreamLoader
from mim_lightning.data.loading.rank_sampler import BatchRequest, RankSampler
from mim_lightning.data.loading.worker_processes import start_worker
from mim_lightning.data.sampling.grouped import GroupedSettings
from mim_lightning.data.sampling.order import EpochSettings, OrderSettings
from mim_lightning.data.sampling.shuffled import ShuffledSettings
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.shards.shard_writer import Record
from mim_lightning.encoders.tiny import HashTokenize
from mim_lightning.types import Batch, ImageSpec, Sample, TextSpec
from tests.shard_sets import write_shard_set

AUGMENT = Augment()
Pass = Callable[[], int]  # reads every row once and returns how many these were


class Spent(NamedTuple):
    """Seconds of a pass."""

    clock: float
    cpu: float  # CPU seconds of this process and its children


def main() -> None:
    wishes = read_wishes()
    torch.set_num_threads(1)
    photos = read_photos(wishes.photos, 2 * wishes.rows)
    results = []
    with tempfile.TemporaryDirectory(dir=wishes.scratch) as scratch:
        for samples_per_product in wishes.rows_per_product:
            shards = write_rows(Path(scratch) / f"rows-{samples_per_product}", photos, samples_per_product, wishes)
            results.append({"rows_per_product": samples_per_product, **compare(shards, samples_per_product, wishes)})
        facts = describe(shards, wishes)
    print("\n".join(lines_of(results, facts)))
    write_record(wishes.output, {"facts": facts, "results": results})


def read_wishes() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of .jpg photos; default: the drawn shop at 256 pixels")
    parser.add_argument("--rows", type=int, default=4096, help="rows of a pass")
    parser.add_argument(
        "--rows-per-product",
        type=int,
        nargs="+",
        default=[1, 4],
        help="rows that share a product; more than 1 meet in batches of a grouped order",
    )
    parser.add_argument("--batch-size", type=int, default=128, help="rows")
    parser.add_argument("--image-size", type=int, default=224, help="pixels a side, after the crop")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of every side")
    parser.add_argument("--rounds", type=int, default=5, help="passes of every side")
    parser.add_argument("--scratch", type=Path, help="where the shards are written; default: the system's place")
    add_output(parser)
    return parser.parse_args()


# --- the rows


def write_rows(folder: Path, photos: Sequence[bytes], samples_per_product: int, wishes: argparse.Namespace) -> ShardSet:
    """Write quadruples."""
    records = (record(photos, number, number // samples_per_product) for number in range(wishes.rows))
    write_shard_set(folder, records, wishes.rows, samples_per_shard=512)
    return ShardSet(folder)


def record(photos: Sequence[bytes], number: int, product: int) -> Record:
    images = {
        "query_image": marked(photos[number % len(photos)], number),
        "product_image": marked(photos[(product + len(photos) // 2) % len(photos)], product),
    }
    facts = {
        "query_id": f"q{number}",
        "product_id": f"p{product}",
        "asked_ids": [f"p{product}"],
        "product_text": f"the product of number {product}, of the usual size, in the usual colours",
        "query_text": f"in blue, number {number}",
    }
    return Record(images, facts)


# --- the sides


def compare(
    shards: ShardSet, samples_per_product: int, wishes: argparse.Namespace
) -> dict[str, dict[str, list[Spent]]]:
    """Return the seconds of each side, by round."""
    text = TextSpec(HashTokenize(32, 4094), 32)
    image = ImageSpec((wishes.image_size, wishes.image_size))
    specs = {"query_image": image, "product_image": image, "product_text": text, "query_text": text}
    collate = Collate(specs, shards.max_relevant, AUGMENT)
    samples = shards.read(range(len(shards)))
    settings: OrderSettings = GroupedSettings(samples_per_product) if samples_per_product > 1 else ShuffledSettings()
    order = settings.for_shards(shards, EpochSettings(wishes.batch_size, seed=1, num_streams=1))
    ranks = RankSampler(shards, order, 0, 1)
    memory = DataLoader(
        MemoryDataset(samples, collate),
        batch_sampler=ranks,  # type: ignore[arg-type]
        collate_fn=as_is,
        num_workers=wishes.workers,
        persistent_workers=True,
        worker_init_fn=start_worker,
    )
    sides: dict[str, Pass] = {
        "ours": partial(drain, StreamLoader(shards, collate, order, num_workers=wishes.workers)),
        "memory": partial(drain, memory),
        "no loader": NoLoader(samples, collate, list(ranks), wishes.workers),
        "webdataset, uint8": partial(drain_webdataset, webdataset_loader(shards, wishes, is_float=False)),
        "webdataset, float32": partial(drain_webdataset, webdataset_loader(shards, wishes, is_float=True)),
    }
    spent: dict[str, list[Spent]] = {name: [] for name in sides}
    names = list(sides)
    for round_idx in range(wishes.rounds + 1):
        for name in names[round_idx % len(names) :] + names[: round_idx % len(names)]:
            started, used = time.perf_counter(), cpu_seconds()
            found = sides[name]()
            clock = getattr(sides[name], "seconds", None) or time.perf_counter() - started
            if found != len(shards):
                raise SystemExit(f"{name} read {found} rows of {len(shards)}")
            if round_idx:  # the first starts workers and fills caches
                spent[name].append(Spent(clock, cpu_seconds() - used))
    return {"spent": spent}


class MemoryDataset(Dataset[Batch]):
    """The same samples in memory."""

    def __init__(self, samples: Sequence[Sample], collate: Collate) -> None:
        self.samples, self.collate = samples, collate

    def __getitems__(self, ref: BatchRequest) -> Batch:
        return self.collate([self.samples[number] for number in ref.numbers], (ref.epoch, ref.start))


class NoLoader:
    """The same work from memory in as many processes, whose batches are dropped; `seconds` is that of the slowest."""

    def __init__(
        self, samples: Sequence[Sample], collate: Collate, refs: list[BatchRequest], num_processes: int
    ) -> None:
        self.dataset, self.refs, self.num_processes = MemoryDataset(samples, collate), refs, num_processes
        self.seconds = 0.0

    def __call__(self) -> int:
        context = multiprocessing.get_context("fork")
        barrier, spent = context.Barrier(self.num_processes), context.SimpleQueue()
        processes = [
            context.Process(target=self._work, args=(idx, barrier, spent)) for idx in range(self.num_processes)
        ]
        for process in processes:
            process.start()
        self.seconds = max(spent.get() for _ in processes)
        for process in processes:
            process.join()
        return sum(len(ref.numbers) for ref in self.refs)

    def _work(self, idx: int, barrier: Any, spent: Any) -> None:
        torch.set_num_threads(1)
        barrier.wait()
        started = time.perf_counter()
        for ref in self.refs[idx :: self.num_processes]:
            self.dataset.__getitems__(ref)
        spent.put(time.perf_counter() - started)


def drain(loader: StreamLoader | DataLoader[Batch]) -> int:
    return sum(len(batch) for batch in loader)


def drain_webdataset(loader: DataLoader[Any]) -> int:
    return sum(len(texts) for *_, texts in loader)


def webdataset_loader(shards: ShardSet, wishes: argparse.Namespace, is_float: bool) -> DataLoader[Any]:
    """The usual pipeline on the same files: Pillow, torchvision, a fixed length of tokens."""
    ratio = 1 / AUGMENT.max_ratio, AUGMENT.max_ratio
    steps = [
        v2.RandomResizedCrop(wishes.image_size, (AUGMENT.min_scale, 1.0), ratio),
        v2.RandomHorizontalFlip(AUGMENT.flip),
        v2.PILToTensor(),
    ]
    if is_float:
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.5,) * 3)]
    urls = [shards.shard_name(idx) for idx in range(len(shards.sizes))]
    rows = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), seed=1)
        .shuffle(1000)
        .map(partial(webdataset_row, v2.Compose(steps)))
        .batched(wishes.batch_size, collation_fn=webdataset_batch)
    )
    return DataLoader(
        rows, batch_size=None, num_workers=wishes.workers, persistent_workers=True, worker_init_fn=start_worker
    )


def webdataset_row(transform: Callable[[Image.Image], torch.Tensor], sample: dict[str, bytes]) -> tuple[Any, ...]:
    facts = json.loads(sample["json"])
    images = [transform(Image.open(BytesIO(sample[name])).convert("RGB")) for name in ("query_image", "product_image")]
    return *images, facts["product_text"], facts["query_text"]


def webdataset_batch(rows: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    query_images, product_images, *texts = zip(*rows, strict=True)
    tokenize = HashTokenize(32, 4094)
    return torch.stack(query_images), torch.stack(product_images), *[tokenize(part)["input_ids"] for part in texts]


def as_is(batch: Batch) -> Batch:
    return batch


# --- the table


def describe(shards: ShardSet, wishes: argparse.Namespace) -> dict[str, Any]:
    num_bytes = sum(Path(shards.shard_name(idx)).stat().st_size for idx in range(len(shards.sizes)))
    return {
        "machine": describe_machine(),
        "versions": f"torch {torch.__version__}, torchvision {torchvision.__version__}, webdataset "
        f"{webdataset.__version__}, Pillow {Image.__version__}, Python {platform.python_version()}",
        "photos": str(wishes.photos.name) if wishes.photos else "drawn",
        "bytes_a_row": num_bytes / len(shards),
        "rows": wishes.rows,
        "batch_size": wishes.batch_size,
        "image_size": wishes.image_size,
        "workers": wishes.workers,
        "rounds": wishes.rounds,
    }


def lines_of(results: Sequence[dict[str, Any]], facts: dict[str, Any]) -> list[str]:
    headings = ("rows a product", "side", "rows/s", "ours is faster by", "by CPU time")
    rows = [row for one in results for row in rows_of(one["rows_per_product"], one["spent"], facts["rows"])]
    sizes = f"batches of {facts['batch_size']}, {facts['image_size']} pixels, {facts['workers']} processes a side"
    note = (
        f"Median of {facts['rounds']} rounds (lowest to highest) of {facts['rows']:,} rows of two "
        f"{facts['photos']} pictures and two texts; {sizes}; {facts['machine']}; {facts['versions']}"
    )
    return table(headings, rows, note, num_left=2)


def rows_of(samples_per_product: int, spent: dict[str, list[Spent]], num_rows: int) -> Iterator[list[object]]:
    ours = spent["ours"]
    for name, found in spent.items():
        ratios = ["", ""] if name == "ours" else [ratio(found, ours, measure) for measure in (0, 1)]
        rate = num_rows / median(one[0] for one in found)
        yield [samples_per_product, name, f"{rate:,.0f}", *ratios]


def ratio(theirs: Sequence[Spent], ours: Sequence[Spent], measure: int) -> str:
    """Return the median over rounds, with the lowest and the highest."""
    found = sorted(their[measure] / our[measure] for their, our in zip(theirs, ours, strict=True))
    return f"{median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


if __name__ == "__main__":
    main()
