"""An embedded catalogue on disk: a safetensors file a shard, and a Parquet table that says whose rows they are.

Whole shards come in from an embedding pass, arrays keyed by product id go out to whoever builds an index. Files
carry the model's fingerprint, and appear whole or not at all, so a pass that was interrupted goes on where it was.
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
    """What decides an embedding: the model, the tower or fusion, and the catalogue."""

    fingerprint: str
    gallery: str
    dimension: int
    catalogue: str  # folder of the shard set
    shard_sizes: list[int]
    written: int  # when the catalogue was, in ns: prepared anew, its rows may be others


@dataclass(frozen=True)
class EmbeddedCatalogue:
    """The rows that have a vector: several of them (pictures) may be of one product."""

    facts: EmbeddingFacts
    vectors: np.ndarray  # (N, D) float32, unit length
    product_ids: list[str]  # of each row
    products: pa.Table  # one row a product: product_id, title, category, further columns
    num_absent: int  # rows without what the gallery is made of


def describe_embedding(catalogue: ShardSet, fingerprint: str, gallery: str, dimension: int) -> EmbeddingFacts:
    return EmbeddingFacts(fingerprint, gallery, dimension, catalogue.place, list(catalogue.sizes), catalogue.written)


class EmbeddingFolder:
    """Where an embedding pass leaves its shards.

    Raises:
        ValueError: the folder holds another model's or another catalogue's embeddings; names both.
    """

    def __init__(self, folder: Path, facts: EmbeddingFacts) -> None:
        self.folder, self.facts = folder, facts
        path = folder / FACTS_FILE
        if path.exists():
            with errors_as_damaged_file(path, "remove it"):
                found = dict(json.loads(path.read_text()))
            for key, wanted in asdict(facts).items():
                if found.get(key) != wanted:
                    raise ValueError(f"{folder}: holds embeddings with {key}={found.get(key)}, not {wanted}; remove it")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as partial:
                partial.write_text(json.dumps(asdict(facts), indent=2))

    def missing(self) -> list[int]:
        """Return the shards that are not embedded yet."""
        return [idx for idx in range(len(self.facts.shard_sizes)) if not self._path(idx).exists()]

    def keep(self, shard_idx: int, vectors_ND: Tensor, present_N: Tensor) -> None:
        """Write one whole shard."""
        tensors = {"vectors": vectors_ND.contiguous(), "present": present_N.contiguous()}
        made_by = {"fingerprint": self.facts.fingerprint, "gallery": self.facts.gallery}
        with atomic_write(self._path(shard_idx)) as partial:
            save_file(tensors, partial, metadata=made_by)

    def collect(self, catalogue: ShardSet) -> EmbeddedCatalogue:
        """Read all shards, and write the table of rows beside them.

        Raises:
            ValueError: a file is damaged, or of another model; or no row has what the gallery is made of.
        """
        parts = [self._read(idx) for idx in range(len(self.facts.shard_sizes))]
        present = np.concatenate([present for _, present in parts])
        vectors = np.concatenate([vectors for vectors, _ in parts])
        facts = [catalogue.read_facts(number) for number in range(len(catalogue))]
        if not present.any():
            raise ValueError(f"{self.facts.catalogue}: no product has what '{self.facts.gallery}' is made of")
        if not present.all():
            vectors = vectors[present]
        rows = pa.table(
            {"product_id": [fact["product_id"] for fact in facts], "sample_num": range(len(facts)), "present": present}
        )
        with atomic_write(self.folder / ROWS_FILE) as partial:
            pa.parquet.write_table(rows, partial)
        ids = rows.filter(rows["present"])["product_id"].to_pylist()
        return EmbeddedCatalogue(self.facts, vectors, ids, _products(facts), int((~present).sum()))

    def _path(self, shard_idx: int) -> Path:
        return self.folder / f"{shard_idx:06d}.safetensors"

    def _read(self, shard_idx: int) -> tuple[np.ndarray, np.ndarray]:
        path = self._path(shard_idx)
        with errors_as_damaged_file(path, "remove it and run again"), safe_open(path, "numpy") as file:
            found = (file.metadata() or {}).get("fingerprint")
            vectors, present = file.get_tensor("vectors"), file.get_tensor("present")
        if found != self.facts.fingerprint or len(vectors) != self.facts.shard_sizes[shard_idx]:
            raise ValueError(
                f"{path}: {len(vectors)} rows of model {found}, expected {self.facts.shard_sizes[shard_idx]} of "
                f"{self.facts.fingerprint}; remove it and run again"
            )
        return vectors, present


def _products(facts: Iterable[dict]) -> pa.Table:
    """Return one row a product; a further column is a number where every value is one."""
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
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    # text as a CSV has it stays text here: what looks like a number in all cells, the index takes for one
    if all(value is None or isinstance(value, int | float) for value in values):  # whole numbers stay what they are
        if not any(isinstance(value, float) for value in values):
            return pa.array(values)
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())
