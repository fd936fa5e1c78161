"""An embedded set on disk, a catalog or queries: for each shard its vectors (safetensors) and its rows (Parquet).

Files carry the fingerprint of the model and are written atomically, so an interrupted pass continues with the shards
that are missing. Several processes may write different shards. Rows of all shards come together in a file, not in
memory; the table of products has to fit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.fields import PRODUCT_TEXT, QUERY_TEXT
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.io.file_name import validate_file_name
from mim_lightning.io.mapped_file import make_array

FACTS_FILE = "embeddings.json"
ROWS_FILE = "rows.parquet"
PREFIX = "file_prefix"  # key in FACTS_FILE, which a store that was never carried over lacks
ID, RECORD = "product_id", "record"  # in a set of queries the id is that of the query
TARGETS = "target_ids"  # in the record of a query
FACTS_SCHEMA = pa.schema([(ID, pa.large_string()), (RECORD, pa.large_string())])
BLOCK_ROWS = 1 << 16  # products that are Python objects at the same time


@dataclass(frozen=True)
class EmbeddingFacts:
    """What determines an embedding: the model, the tower or fusion, and the catalog; the keys of `embeddings.json`."""

    fingerprint: str
    gallery: str
    dimension: int
    catalog: str  # folder of the shard set
    shard_sizes: list[int]
    written: int  # time of the catalog in ns: preparing it again may change its rows
    crop: str = ""  # the part of each image that was embedded; "": all of it


@dataclass(frozen=True)
class EmbeddedCatalog:
    """The rows that have a vector; several of them (images) may be of one product."""

    facts: EmbeddingFacts
    vectors: np.ndarray  # (N, D) float32, unit length
    product_ids: list[str]  # of each row
    products: pa.Table  # one row per product: product_id, title, category, further columns
    num_absent: int  # rows without the inputs of the gallery


@dataclass(frozen=True)
class StoredEmbedding:
    """The content of `embeddings.json`: what the vectors are of, and what their files begin with."""

    facts: EmbeddingFacts
    prefix: str = ""  # where they were carried over from a former version of the catalog

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return what a folder has embeddings of; None: it has none."""
        path = folder / FACTS_FILE
        if not path.exists():
            return None
        with errors_as_damaged_file(path, "remove it"):
            content = dict(json.loads(path.read_text()))
            prefix = str(content.pop(PREFIX, ""))
            validate_file_name(f"{prefix}0", PREFIX)
            return cls(EmbeddingFacts(**content), prefix)

    def write(self, folder: Path) -> None:
        prefix = {PREFIX: self.prefix} if self.prefix else {}
        with atomic_write(folder / FACTS_FILE) as partial:
            facts = {key: value for key, value in asdict(self.facts).items() if key != "crop" or value}
            partial.write_text(json.dumps(facts | prefix, indent=2))

    def vectors_path(self, folder: Path, shard_idx: int) -> Path:
        return folder / f"{self.prefix}{shard_idx:06d}.safetensors"

    def products_path(self, folder: Path, shard_idx: int) -> Path:
        return folder / f"{self.prefix}{shard_idx:06d}.products.parquet"


def describe_embedding(
    catalog: ShardSet, fingerprint: str, gallery: str, dimension: int, crop: str = ""
) -> EmbeddingFacts:
    return EmbeddingFacts(fingerprint, gallery, dimension, catalog.place, list(catalog.sizes), catalog.written, crop)


class EmbeddingStore:
    """The folder of an embedding pass.

    Raises:
        ValueError: the folder has embeddings of another model or another catalog; names both.
    """

    def __init__(self, folder: Path, facts: EmbeddingFacts) -> None:
        self.folder, self.facts = folder, facts
        stored = StoredEmbedding.read(folder)
        if stored is None:
            folder.mkdir(parents=True, exist_ok=True)
            stored = StoredEmbedding(facts)
            stored.write(folder)
        self.stored = stored
        for key, value in asdict(facts).items():
            if (found := getattr(stored.facts, key)) != value:
                raise ValueError(f"{folder}: has embeddings with {key}={found}, not {value}; remove it")

    def missing(self) -> list[int]:
        """Return the shards that are not embedded yet."""
        return [idx for idx in range(len(self.facts.shard_sizes)) if not self._path(idx).exists()]

    def write(self, shard_idx: int, vectors_ND: Tensor, present_N: Tensor, facts: Iterable[dict[str, Any]]) -> None:
        """Write one whole shard.

        Args:
            facts: of each row, as `ShardSet.read_facts` returns them; those of parts are in the store of whole images.
        """
        if not self.facts.crop:
            with atomic_write(self._products_path(shard_idx)) as partial:
                pa.parquet.write_table(tabulate_facts(facts), partial, compression="zstd")
        tensors = {"vectors": vectors_ND.contiguous(), "present": present_N.contiguous()}
        metadata = {"fingerprint": self.facts.fingerprint, "gallery": self.facts.gallery}
        with atomic_write(self._path(shard_idx)) as partial:
            save_file(tensors, partial, metadata=metadata)

    def collect(self, catalog: ShardSet, crops: Sequence[EmbeddingStore] = ()) -> EmbeddedCatalog:
        """Return the rows of all shards, and write the table of rows beside them.

        Args:
            crops: stores of parts of the images, whose rows follow; large tables of vectors are in a file.

        Raises:
            ValueError: a file is damaged, or of another model; or no row has the inputs of the gallery.
        """
        shard_idxs = range(len(self.facts.shard_sizes))
        present_N = self.read_present()
        if not present_N.any():
            raise ValueError(f"{self.facts.catalog}: no product has the inputs of '{self.facts.gallery}'")
        num_parts = sum(int(store.read_present().sum()) for store in crops)
        shape = int(present_N.sum()) + num_parts, self.facts.dimension
        vectors_ND, start = make_array(np.float32, shape, self.folder), 0
        for store, idx in product((self, *crops), shard_idxs):
            part_ND = store._read(idx, "vectors")[store._read(idx, "present")]
            vectors_ND[start : start + len(part_ND)] = part_ND
            start += len(part_ND)
        products = pa.concat_tables(self.read_products(idx, catalog) for idx in shard_idxs)
        rows = pa.table({"product_id": products[ID], "sample_num": range(len(products)), "present": present_N})
        with atomic_write(self.folder / ROWS_FILE) as partial:
            pa.parquet.write_table(rows, partial)
        of_sample = rows[ID].to_pylist()
        ids = [of_sample[row] for row in np.flatnonzero(present_N).tolist()]
        for store, idx in product(crops, shard_idxs):  # the same strings once more
            first, _ = catalog.span(idx)
            ids += [of_sample[first + row] for row in np.flatnonzero(store._read(idx, "present")).tolist()]
        return EmbeddedCatalog(self.facts, vectors_ND, ids, tabulate_products(products), int((~present_N).sum()))

    def read_present(self) -> np.ndarray:
        """Return which rows have a vector, (N,) bool; errors as in `collect`."""
        return np.concatenate([self._read(idx, "present") for idx in range(len(self.facts.shard_sizes))])

    def read_shards(self, shards: ShardSet) -> Iterator[tuple[np.ndarray, pa.Table, int]]:
        """Yield the vectors (n, D) float32 of each shard, ids and records of these rows, and how many have no vector.

        Args:
            shards: the set that is embedded.

        Raises:
            ValueError: a file is damaged, or of another model.
        """
        for idx in range(len(self.facts.shard_sizes)):
            present_N, table = self._read(idx, "present"), self.read_products(idx, shards)
            yield self._read(idx, "vectors")[present_N], table.filter(pa.array(present_N)), int((~present_N).sum())

    def _path(self, shard_idx: int) -> Path:
        return self.stored.vectors_path(self.folder, shard_idx)

    def _products_path(self, shard_idx: int) -> Path:
        return self.stored.products_path(self.folder, shard_idx)

    def _read(self, shard_idx: int, part: str) -> np.ndarray:
        path, size = self._path(shard_idx), self.facts.shard_sizes[shard_idx]
        with errors_as_damaged_file(path, "remove it and run again"), safe_open(path, "numpy") as file:
            fingerprint = (file.metadata() or {}).get("fingerprint")
            values = file.get_tensor(part)
        if fingerprint != self.facts.fingerprint or len(values) != size:
            raise ValueError(
                f"{path}: {len(values)} rows of model {fingerprint}, expected {size} of {self.facts.fingerprint}; "
                "remove it and run again"
            )
        return values

    def read_products(self, shard_idx: int, catalog: ShardSet) -> pa.Table:
        path = self._products_path(shard_idx)
        if not path.exists():  # embedded by a version before 0.2
            return tabulate_facts(catalog.read_facts(number) for number in range(*catalog.span(shard_idx)))
        with errors_as_damaged_file(path, f"remove it and {self._path(shard_idx).name} and run again"):
            with pa.parquet.ParquetFile(path) as file:  # `read_table` takes a folder "seed=1" for a column
                table = file.read(use_threads=False)
            if table.schema != FACTS_SCHEMA or len(table) != self.facts.shard_sizes[shard_idx]:
                raise ValueError(f"{len(table)} rows of {', '.join(table.column_names)}")
        return table


def tabulate_facts(facts: Iterable[dict[str, Any]]) -> pa.Table:
    """Return a row for each row of a shard: id of the product or the query, and its record as JSON."""
    ids, records = [], []
    for fact in facts:
        if fact.get("query_id") is not None:
            record = {"text": fact.get(QUERY_TEXT) or None, TARGETS: fact.get("asked_ids", ())}
            ids.append(fact["query_id"])
            records.append(json.dumps({**record, "category": fact["category"]}))
            continue
        title = fact.get("title") or (fact.get(PRODUCT_TEXT) or "").split(". ")[0] or None
        ids.append(fact["product_id"])
        records.append(json.dumps({**fact.get("metadata", {}), "title": title, "category": fact["category"]}))
    return pa.table([ids, records], schema=FACTS_SCHEMA)


def tabulate_products(facts: pa.Table) -> pa.Table:
    """Return one row per product, its first, ascending by id; a further column is a number where every value is one.

    Args:
        facts: from `tabulate_facts`.
    """
    facts = facts.take(pc.sort_indices(facts[ID]))  # stable: rows of a product stay in their order
    ids = facts[ID].combine_chunks()
    if len(facts) > 1:
        facts = facts.filter(pa.concat_arrays([pa.array([True]), pc.not_equal(ids[1:], ids[:-1])]))
    kinds: dict[str, set[type]] = {"title": set(), "category": set()}
    for block in facts.to_batches(BLOCK_ROWS):
        for record in parse_records(block):
            for name, value in record.items():
                kinds.setdefault(name, set()).add(type(value))
    kinds.pop(ID, None)
    names = ["title", "category", *sorted(kinds.keys() - {"title", "category"})]
    blocks = [
        [to_column([record.get(name) for record in records], kinds[name]) for name in names]
        for records in map(parse_records, facts.to_batches(BLOCK_ROWS))
    ]
    columns = {name: pa.chunked_array(parts) for name, parts in zip(names, zip(*blocks, strict=True), strict=True)}
    return pa.table({ID: facts[ID], **columns})


def parse_records(block: pa.RecordBatch) -> list[dict[str, Any]]:
    return [json.loads(record) for record in block[RECORD].to_pylist()]


def to_column(values: list[Any], kinds: set[type]) -> pa.Array:
    """Return a block of a column whose values are of these types."""
    # text from a CSV stays text here: the index decides whether all cells are numbers
    given = kinds - {type(None)}
    if len(given) <= 1 and given <= {int, bool}:
        return pa.array(values, {bool: pa.bool_(), int: pa.int64()}[given.pop()] if given else pa.null())
    if float in given and given <= {int, bool, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())
