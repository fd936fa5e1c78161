"""The columns of vectors that training reads: their files by name, described and compared with those of a checkpoint.

See `data.loading.vector_table` for the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mim_lightning.data.loading.feature_cache import FeatureCacheSettings
from mim_lightning.data.loading.vector_table import VectorTable, open_vectors, read_width, validate_vectors
from mim_lightning.data.sampling.order import read_column, release_pages
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.fields import QUERY, side_of


class VectorColumns:
    """Columns of vectors by name; a file is opened, and written into the cache, when its vectors are first needed.

    Args:
        given: Parquet files by name of a side of a pair; None: the column is not given.
        cache: of features; that of vectors is the folder beside it.
    """

    def __init__(self, given: Mapping[str, str | None], cache: FeatureCacheSettings) -> None:
        self.given, self.cache = dict(given), cache
        self._paths: dict[str, Path] = {}  # of `given`, what training reads
        self._tables: dict[str, VectorTable] = {}  # of these, once they are opened

    def use(self, names: Sequence[str]) -> dict[str, int]:
        """Have training batches read columns, and return the dimension of each.

        Raises:
            ValueError: a file is missing, or has no vectors.
        """
        found = validate_vectors({name: self.given[name] for name in names})
        self._paths, self._tables = found, {}
        return {name: read_width(name, path) for name, path in found.items()}

    def open(self) -> dict[str, VectorTable]:
        """Return the columns that training reads, each opened once."""
        root = self.cache.root.parent / "vectors"
        for name, path in self._paths.items():
            if name not in self._tables:  # opening reads the file
                self._tables[name] = open_vectors(name, path, root)
        return self._tables

    def describe(self, shards: ShardSet) -> Iterator[str]:
        """Yield for each column how many training rows have a vector.

        Raises:
            ValueError: none has one.
        """
        for name, table in self.open().items():
            place = f"data.vectors.{name}={self._paths[name]}"
            keys = read_column(shards, "keys" if side_of(name) == QUERY else "product_keys")
            count = table.count(keys)
            release_pages(keys)
            if not count:
                raise ValueError(
                    f"{place}: none of its {side_of(name)} ids is in the training rows of {shards.folder}; give "
                    "vectors of this data set"
                )
            yield f"{place}: {count:,} of {len(keys):,} training rows have a vector ({count / len(keys):.1%})"

    def digests(self) -> dict[str, str]:
        """Return a digest of each column that training reads."""
        return {name: table.digest for name, table in self.open().items()}

    def validate_digests(self, stored: Mapping[str, str]) -> None:
        """Raise ValueError if a column is not that of a checkpoint, by the `digests` that it stores."""
        for name, digest in stored.items():
            if name in self._paths and self.open()[name].digest != digest:
                raise ValueError(
                    f"data.vectors.{name}={self._paths[name]}: its content changed since the checkpoint was written; "
                    "restore the former file, or train under another run.id"
                )
