"""A manifest turned into shard sets on disk: `queries/<split>` and `catalogue`, whole or not there at all.

A Source comes in, a PreparedData goes out; the `prepare` door and the DataModule call `prepare_shards`. The
training split's samples hold query and product together (a triple or quadruple); the other splits hold queries
alone, and are ranked against the catalogue.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from mim_lightning.data.decode import normalise_encoding, sharpness
from mim_lightning.data.manifest import Manifest, Product, Query, Source
from mim_lightning.data.protocol import Protocol, Seen
from mim_lightning.data.shards import Record, ShardSet, write_shard_set

_Row = Query | tuple[Query, str]  # an evaluation query, or a training query with the product of its row
SETTINGS_FILE = "settings.json"  # written last: its presence means complete


@dataclass(frozen=True)
class ShardSettings:
    """How a manifest is cut into shards."""

    train_split: str = "train"
    val_split: str = "val"  # where a product-disjoint protocol puts what it holds out
    max_image_side: int = 512  # pixels; larger pictures are stored smaller
    samples_per_shard: int = 2000
    seed: int = 0  # of the order in which training rows are written

    def __post_init__(self) -> None:
        for name in ("max_image_side", "samples_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.shards.{name}={getattr(self, name)}: must be at least 1")


@dataclass(frozen=True)
class PreparedData:
    """The shard sets of one folder."""

    folder: Path

    def describe(self) -> dict[str, Any]:
        """Return the source and settings that the data were made from."""
        return json.loads((self.folder / SETTINGS_FILE).read_text())

    def splits(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "queries").iterdir())

    def queries(self, split: str) -> ShardSet:
        if split not in self.splits():
            raise ValueError(f"{self.folder}: no split '{split}'; it has {self.splits()}")
        return ShardSet(self.folder / "queries" / split)

    def catalogue(self) -> ShardSet:
        return ShardSet(self.folder / "catalogue")


def open_prepared(folder: Path) -> PreparedData:
    """Open a prepared folder.

    Raises:
        ValueError: there is none.
    """
    if not (folder / SETTINGS_FILE).is_file():
        raise ValueError(f"{folder}: no prepared data here; run python -m mim_lightning.prepare")
    return PreparedData(folder)


def open_products(folder: Path, distractors: Path | None = None) -> list[ShardSet]:
    """Open the sets that make up a gallery: the catalogue of `folder`, and that of `distractors` if there are any."""
    return [open_prepared(place).catalogue() for place in (folder, distractors) if place is not None]


def prepare_shards(
    source: Source, folder: Path, settings: ShardSettings, protocol: Protocol | None = None, *, force: bool = False
) -> PreparedData:
    """Write the shard sets of `source`, split by `protocol`, into `folder`, or open them if they are there already.

    Data made from another source or with other settings is refused, not reused, unless `force` has it rewritten.
    A folder that holds anything else is left alone. Everything is written beside the folder and renamed into
    place at the end.

    Raises:
        ValueError: the manifest or an image is faulty, or the folder holds other data.
    """
    protocol = protocol or Seen()
    parts = {"source": source.describe(), "settings": vars(settings), "protocol": vars(protocol)}
    described = json.loads(json.dumps(parts))
    if (folder / SETTINGS_FILE).is_file() and not force:
        _check_same(folder, described)
        return PreparedData(folder)
    is_foreign = folder.exists() and not (folder / SETTINGS_FILE).is_file()
    if is_foreign and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: exists and holds no prepared data; give an empty or new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # process ids repeat on other machines that share the disk
    partial = folder.with_name(f".{folder.name}.partial-{uuid.uuid4().hex[:12]}")
    try:
        partial.mkdir()
        manifest = protocol.apply(source.read(partial / "source"), settings.train_split, settings.val_split)
        _write_sets(manifest, partial, settings)
        (partial / SETTINGS_FILE).write_text(json.dumps(described, indent=2))
        _move_into_place(partial, folder, described, force)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return PreparedData(folder)


def _check_same(folder: Path, described: Mapping[str, Any]) -> None:
    found = PreparedData(folder).describe()
    for part, wanted in described.items():
        there = found.get(part, {})
        for key in sorted({*wanted, *there}):
            if wanted.get(key) != there.get(key):
                raise ValueError(
                    f"{folder}: was prepared with {key}={there.get(key, 'nothing, by an older version')}, "
                    f"asked for is {wanted.get(key)}; "
                    "run prepare with force=true, or choose another data.folder"
                )


def _move_into_place(partial: Path, folder: Path, described: Mapping[str, Any], force: bool) -> None:
    if force:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / SETTINGS_FILE).is_file():
            raise
        # another process finished the same work first; its result is as good
        _check_same(folder, described)


def _write_sets(manifest: Manifest, folder: Path, settings: ShardSettings) -> None:
    records = _Records(manifest, settings.max_image_side)
    if manifest.queries_path is not None:
        manifest.split(settings.train_split)  # an empty training split is an error, whatever else is there
    gallery = [(product, image) for product in manifest.products.values() for image in product.images or (None,)]
    with Progress(transient=True) as progress:
        catalogue = (records.of_catalogue(*row) for row in progress.track(gallery, description="catalogue"))
        write_shard_set(folder / "catalogue", catalogue, len(gallery), settings.samples_per_shard)
        for split in sorted({query.split for query in manifest.queries}):
            is_train = split == settings.train_split
            rows: Sequence[_Row]
            rows = records.training_rows(split, settings.seed) if is_train else manifest.split(split)
            queries = records.of_queries(progress.track(rows, description=split))
            write_shard_set(folder / "queries" / split, queries, len(rows), settings.samples_per_shard)
    (folder / "queries").mkdir(exist_ok=True)  # a catalogue alone has none


class _Records:
    """Manifest rows to shard records; product pictures are read once."""

    def __init__(self, manifest: Manifest, max_image_side: int) -> None:
        self.products, self.manifest = manifest.products, manifest
        self.max_image_side = max_image_side
        self._product_image = lru_cache(maxsize=5_000)(self._read_image)  # a few hundred MB

    def training_rows(self, split: str, seed: int) -> list[tuple[Query, str]]:
        """Return one row a query and product that answers it, in an order that mixes neighbours."""
        rows = [(query, product_id) for query in self.manifest.split(split) for product_id in query.asked_ids]
        return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]

    def of_product(self, product: Product, image: Path | None) -> Record:
        images = {"product_image": self._product_image(image, product.origin)} if image else {}
        facts = {"product_id": product.product_id, "category": product.category, "product_text": product.text}
        return Record(images, facts)

    def of_catalogue(self, product: Product, image: Path | None) -> Record:
        """Return a product's record with what only its own page shows."""
        record = self.of_product(product, image)
        return Record(record.images, {**record.facts, "title": product.title, "metadata": dict(product.metadata)})

    def of_queries(self, rows: Iterable[_Row]) -> Iterator[Record]:
        for number, row in enumerate(rows):
            query, product_id = row if isinstance(row, tuple) else (row, None)
            images, facts = {}, {}
            if product_id is not None:
                product = self.products[product_id]
                pictures = product.images
                whole = self.of_product(product, pictures[number % len(pictures)] if pictures else None)
                images, facts = dict(whole.images), dict(whole.facts)
            if query.image is not None:
                images["query_image"] = self._read_image(query.image, query.origin)
            facts |= {
                "query_id": query.query_id,
                "query_text": query.text,
                "asked_ids": query.asked_ids,
                "asked_grades": query.asked_grades,
                "shown_ids": query.shown_ids,
                "category": self.products[(*query.asked_ids, *query.shown_ids)[0]].category,
            }
            if product_id is None:  # an evaluation query, whose results are told by segment
                facts["segments"] = dict(query.segments)
                if "query_image" in images:
                    facts["image_sharpness"] = sharpness(images["query_image"])
            yield Record(images, facts)

    def _read_image(self, path: Path, origin: str) -> bytes:
        try:
            return normalise_encoding(path.read_bytes(), self.max_image_side)
        except FileNotFoundError:
            raise ValueError(f"{origin}, column 'image': no such file {path}") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{origin}, column 'image': {path}: {error}") from error
