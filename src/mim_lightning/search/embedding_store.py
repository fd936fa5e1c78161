"""An embedded catalog on disk: one safetensors file per shard, and a Parquet table of the product of each row.

Files carry the fingerprint of the model and are written atomically, so an interrupted pass continues with the shards
that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.fields import PRODUCT_TEXT
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import errors_as_damaged_file

FACTS_FILE = "embeddings.json"
ROWS_FILE = "rows.parquet"


@dataclass(frozen=True)
class EmbeddingFacts:
    """What determines an embedding: the model, the tower or fusion, and the catalog; the keys of `embeddings.json`."""

    fingerprint: str
    gallery: str
    dimension: int
    catalog: str  # folder of the shard set
    shard_sizes: list[int]
    written: int  # time of the catalog in ns: preparing it again may change its rows


@dataclass(frozen=True)
class EmbeddedCatalog:
    """The rows that have a vector; several of them (images) may be of one product."""

    facts: EmbeddingFacts
    vectors: np.ndarray  # (N, D) float32, unit length
    product_ids: list[str]  # of each row
    products: pa.Table  # one row per product: product_id, title, category, further columns
    num_absent: int  # rows without the inputs of the gallery


def describe_embedding(catalog: ShardSet, fingerprint: str, gallery: str, dimension: int) -> EmbeddingFacts:
    return EmbeddingFacts(fingerprint, gallery, dimension, catalog.place, list(catalog.sizes), catalog.written)


class EmbeddingStore:
    """The folder of an embedding pass.

    Raises:
        ValueError: the folder has embeddings of another model or another catalog; names both.
    """

    def __init__(self, folder: Path, facts: EmbeddingFacts) -> None:
        self.folder, self.facts = folder, facts
        path = folder / FACTS_FILE
        if path.exists():
            with errors_as_damaged_file(path, "remove it"):
                stored = dict(json.loads(path.read_text()))
            for key, value in asdict(facts).items():
                if stored.get(key) != value:
                    raise ValueError(f"{folder}: has embeddings with {key}={stored.get(key)}, not {value}; remove it")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as partial:
                partial.write_text(json.dumps(asdict(facts), indent=2))

    def missing(self) -> list[int]:
        """Return the shards that are not embedded yet."""
        return [idx for idx in range(len(self.facts.shard_sizes)) if not self._path(idx).exists()]

    def write(self, shard_idx: int, vectors_ND: Tensor, present_N: Tensor) -> None:
        """Write one whole shard."""
        tensors = {"vectors": vectors_ND.contiguous(), "present": present_N.contiguous()}
        metadata = {"fingerprint": self.facts.fingerprint, "gallery": self.facts.gallery}
        with atomic_write(self._path(shard_idx)) as partial:
            save_file(tensors, partial, metadata=metadata)

    def collect(self, catalog: ShardSet) -> EmbeddedCatalog:
        """Read all shards, and write the table of rows beside them.

        Raises:
            ValueError: a file is damaged, or of another model; or no row has the inputs of the gallery.
        """
        parts = [self._read(idx) for idx in range(len(self.facts.shard_sizes))]
        present = np.concatenate([present for _, present in parts])
        vectors = np.concatenate([vectors for vectors, _ in parts])
        facts = list(catalog.all_facts())
        if not present.any():
            raise ValueError(f"{self.facts.catalog}: no product has the inputs of '{self.facts.gallery}'")
        if not present.all():
            vectors = vectors[present]
        rows = pa.table(
            {"product_id": [fact["product_id"] for fact in facts], "sample_num": range(len(facts)), "present": present}
        )
        with atomic_write(self.folder / ROWS_FILE) as partial:
            pa.parquet.write_table(rows, partial)
        ids = rows.filter(rows["present"])["product_id"].to_pylist()
        return EmbeddedCatalog(self.facts, vectors, ids, tabulate_products(facts), int((~present).sum()))

    def _path(self, shard_idx: int) -> Path:
        return self.folder / f"{shard_idx:06d}.safetensors"

    def _read(self, shard_idx: int) -> tuple[np.ndarray, np.ndarray]:
        path, size = self._path(shard_idx), self.facts.shard_sizes[shard_idx]
        with errors_as_damaged_file(path, "remove it and run again"), safe_open(path, "numpy") as file:
            fingerprint = (file.metadata() or {}).get("fingerprint")
            vectors, present = file.get_tensor("vectors"), file.get_tensor("present")
        if fingerprint != self.facts.fingerprint or len(vectors) != size:
            raise ValueError(
                f"{path}: {len(vectors)} rows of model {fingerprint}, expected {size} of {self.facts.fingerprint}; "
                "remove it and run again"
            )
        return vectors, present


def tabulate_products(facts: Iterable[dict]) -> pa.Table:
    """Return one row per product; a further column is a number where every value is one."""
    by_id = {fact["product_id"]: fact for fact in reversed(list(facts))}
    rows = [
        {
            **fact.get("metadata", {}),
            "product_id": product_id,
            "title": fact.get("title") or (fact.get(PRODUCT_TEXT) or "").split(". ")[0] or None,
            "category": fact["category"],
        }
        for product_id, fact in sorted(by_id.items())
    ]
    names = ["product_id", "title", "category"]
    names += sorted({name for row in rows for name in row} - set(names))
    return pa.table({name: _to_column([row.get(name) for row in rows]) for name in names})


def _to_column(values: list[Any]) -> pa.Array:
    # text from a CSV stays text here: the index decides whether all cells are numbers
    if all(value is None or isinstance(value, int | float) for value in values):
        if not any(isinstance(value, float) for value in values):
            return pa.array(values)
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())
