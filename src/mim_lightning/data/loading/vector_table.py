"""Vectors that some other model gave to products or queries: a column of the training rows, read by id.

They come as a Parquet file with `product_id` or `query_id` and `vector`, as the command `embed` writes it or any other
program. Parquet is compressed, so once on each machine the vectors are written one after the other into a cache; every
process maps them into memory and reads the rows of its batches.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from mim_lightning.fields import DECLARED, QUERY, RESERVED, SIDES, side_of
from mim_lightning.ids import hash_id
from mim_lightning.io.atomic import atomic_write_folder
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.io.mapped_file import map_new

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

VECTOR, MAGIC = "vector", b"PAR1"
FACTS, KEYS, ROWS, VECTORS = "facts.json", "keys.bin", "rows.bin", "vectors.bin"
FORMAT = 1
BATCH_ROWS, COUNTED_ROWS = 1 << 13, 1 << 20  # at once
HASHED_WHOLE, HASHED_EVERY = 1 << 28, 1 << 26  # bytes of a file that is hashed as a whole; of a larger one, see below


@dataclass(frozen=True)
class VectorTable:
    """The vectors of one file in the cache; cheap to send to a worker.

    Args:
        folder: in the cache.
        num_rows, width: of the table.
        dtype: float32 or float16.
        digest: of the file, see `digest_vectors`.
    """

    folder: Path
    num_rows: int
    width: int
    dtype: str
    digest: str

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}  # a worker maps the files itself

    @cached_property
    def _maps(self) -> tuple[np.memmap, np.memmap, np.memmap]:
        shapes = ((KEYS, "i8", (self.num_rows,)), (ROWS, "i8", (self.num_rows,)))
        keys, rows = (np.memmap(self.folder / name, kind, "r", shape=shape) for name, kind, shape in shapes)
        return keys, rows, np.memmap(self.folder / VECTORS, self.dtype, "r", shape=(self.num_rows, self.width))

    def read(self, keys_B: Tensor) -> Tensor:
        """Return vectors (B, D) float32 of unit length by hashed id; zeros of an id that the table lacks."""
        import torch

        _, rows, vectors = self._maps
        wanted = keys_B.numpy()
        places, is_found = self._find(wanted)
        found = np.zeros((len(wanted), self.width), np.float32)
        found[is_found] = vectors[rows[places[is_found]]]
        return torch.from_numpy(found)

    def count(self, keys_N: np.ndarray) -> int:
        """Return how many of the hashed ids have a vector, counting each as often as it occurs."""
        parts = (keys_N[start : start + COUNTED_ROWS] for start in range(0, len(keys_N), COUNTED_ROWS))
        return sum(int(self._find(part)[1].sum()) for part in parts)

    def _find(self, keys_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        known = self._maps[0]
        places = np.searchsorted(known, keys_B).clip(max=self.num_rows - 1)
        return places, known[places] == keys_B


def validate_vectors(vectors: Mapping[str, str | None]) -> dict[str, Path]:
    """Return the file of each column of vectors.

    Raises:
        ValueError: a name that no column can have, or no such file.
    """
    found = {}
    for name, path in vectors.items():
        if path is None:
            continue
        if not str(name).startswith(tuple(f"{side}_" for side in SIDES)) or name in (*RESERVED, DECLARED):
            raise ValueError(
                f"data.vectors.{name}: the first word of its name says what its ids are of; give a name such as "
                f"product_{name}"
            )
        if not Path(path).is_file():
            raise ValueError(f"data.vectors.{name}={path}: no such file; give a Parquet file, as embed writes it")
        found[name] = Path(path)
    return found


def digest_vectors(path: Path) -> str:
    """Return a digest of the content of a Parquet file, of a large one without reading most of it.

    It is of the footer, which has sizes and extremes of all columns, and of the first MiB of every `HASHED_EVERY`.

    Raises:
        ValueError: no Parquet file.
    """
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        length, magic = struct.unpack("<i4s", file.read(8)) if size > 8 else (0, b"")
        if magic != MAGIC or not 0 < length < size:
            raise ValueError(f"{path}: no Parquet file, or a damaged one")
        file.seek(size - 8 - length)
        digest.update(file.read(length))
        step = 1 << 20 if size <= HASHED_WHOLE else HASHED_EVERY
        for start in range(0, size - 8 - length, step):
            file.seek(start)
            digest.update(file.read(1 << 20))
    return f"xxh3-{digest.hexdigest()}"


def read_width(name: str, path: Path) -> int:
    """Return the dimension of a file's vectors, without reading them all.

    Raises:
        ValueError: it lacks the columns, or has no row.
    """
    return _Source(name, path).width


def open_vectors(name: str, path: Path, cache: Path) -> VectorTable:
    """Open a column of vectors; written into the cache if they are not there. One process of a machine comes first.

    Vectors are divided by their length. Of several rows with one id (pictures of a product) the first counts.

    Args:
        name: of the column; its side says whether ids are of queries or of products.
        path: of the Parquet file.

    Raises:
        ValueError: the file lacks a column, a row has no vector of unit length or of another dimension; names the row.
    """
    digest = digest_vectors(path)
    folder = cache / f"{digest}-{side_of(name)}"
    if not (folder / FACTS).is_file():
        _Source(name, path).write(folder)
    with errors_as_damaged_file(folder / FACTS, "remove its folder, and it is written again"):
        facts = json.loads((folder / FACTS).read_text())
        return VectorTable(folder, int(facts["num_rows"]), int(facts["width"]), str(facts["dtype"]), digest)


class _Source:
    """A Parquet file of ids and vectors."""

    def __init__(self, name: str, path: Path) -> None:
        import pyarrow.parquet

        self.path, self.id_column = path, f"{side_of(name)}_id"
        with errors_as_damaged_file(path, "write it again"):
            self.file = pyarrow.parquet.ParquetFile(path)
        schema = self.file.schema_arrow
        for column in (self.id_column, VECTOR):
            if column not in schema.names:
                side = "queries" if side_of(name) == QUERY else "products"
                raise ValueError(
                    f"data.vectors.{name}={path}: has no column {column}, but {', '.join(schema.names)}; it is of "
                    f"{side}, as its name says, and needs {self.id_column} and {VECTOR}"
                )
        kind = schema.field(VECTOR).type
        if not hasattr(kind, "value_type") or str(kind.value_type) not in ("float", "double", "halffloat"):
            raise ValueError(f"data.vectors.{name}={path}: {VECTOR} is {kind}; give lists of floating point numbers")
        self.dtype = "float16" if str(kind.value_type) == "halffloat" else "float32"
        self.num_rows = self.file.metadata.num_rows
        if not self.num_rows:
            raise ValueError(f"data.vectors.{name}={path}: has no row")
        first = next(self.file.iter_batches(1, columns=[VECTOR]))
        self.width = len(first[0][0].as_py() or ())
        if not self.width:
            raise ValueError(f"data.vectors.{name}={path}: row 0 has no vector")

    def write(self, folder: Path) -> None:
        keys, start = np.empty(self.num_rows, np.int64), 0
        with atomic_write_folder(folder) as partial:
            with (partial / VECTORS).open("w+b") as file:
                vectors = map_new(file, self.dtype, (self.num_rows, self.width), folder / VECTORS)
            for batch in self.file.iter_batches(BATCH_ROWS, columns=[self.id_column, VECTOR]):
                stop = start + len(batch)
                if (ids := batch[self.id_column]).null_count:
                    row = start + ids.is_null().to_pylist().index(True)
                    raise ValueError(f"{self.path}: row {row} has no {self.id_column}")
                keys[start:stop] = [hash_id(str(one)) for one in ids.to_pylist()]
                vectors[start:stop] = self._vectors(batch[VECTOR], start)
                start = stop
            vectors.flush()
            order = np.argsort(keys, kind="stable")  # searchsorted finds the first of equal keys
            keys[order].tofile(partial / KEYS)
            order.astype(np.int64).tofile(partial / ROWS)
            facts = {"format": FORMAT, "num_rows": self.num_rows, "width": self.width, "dtype": self.dtype}
            (partial / FACTS).write_text(json.dumps(facts))

    def _vectors(self, column: pa.Array, start: int) -> np.ndarray:
        lengths = np.array([0 if row is None else row for row in column.value_lengths().to_pylist()])
        if len(bad := np.flatnonzero(lengths != self.width)):
            raise ValueError(
                f"{self.path}: row {start + int(bad[0])} has a vector of {lengths[bad[0]]} numbers, the first row one "
                f"of {self.width}"
            )
        vectors_nD = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, self.width)
        norms_n = np.linalg.norm(vectors_nD, axis=1, keepdims=True)
        if len(bad := np.flatnonzero(~(np.isfinite(norms_n[:, 0]) & (norms_n[:, 0] > 0)))):
            raise ValueError(f"{self.path}: row {start + int(bad[0])} has a vector that is zero or not finite")
        return vectors_nD / norms_n
