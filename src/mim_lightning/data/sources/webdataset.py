"""WebDataset shards as others write them: a sample is a query with a product that answers it.

Patterns of tar files come in, a Manifest goes out whose pictures point into them; nothing is unpacked or copied. The
catalogue is made of the products of all samples, and of shards that hold products alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mim_lightning.data.images.download import DownloadSettings
from mim_lightning.data.manifest.builder import ManifestBuilder
from mim_lightning.data.manifest.manifest import PRODUCTS, QUERIES, Manifest, declared_fields, finish, with_fields
from mim_lightning.data.manifest.rows import OnIssue, RowError, raise_issue
from mim_lightning.data.manifest.table import ColumnNames
from mim_lightning.data.sources.sample_columns import SampleColumns
from mim_lightning.data.sources.tar_reader import TarSample, read_samples
from mim_lightning.io.paths import (
    PathOrUrl,
    file_size,
    find_files,
    io_errors_as_value_error,
    parent_of,
    read_range,
    to_path_or_url,
)

NUM_PEEKED = 1000  # samples among which every mapped member must occur
NUM_PIECES, PIECE_SIZE = 8, 1 << 16  # of a shard, that tell it from another
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class WebDatasetSource:
    """Pairs of query and product in tar files.

    Args:
        shards: by split, the tar files: a path or address, with {000..123} or * for several; None: no such split.
        catalogue: tar files whose samples are products alone, that join the catalogue.
        columns: our column name -> where a sample holds it, by table: a member ("query.jpg"), a key of a JSON member
            ("json:product.id") or "__key__", several with "|" between them: the first that is there; None: there is
            none. Without one for the split, a query is in that of its shards.
        image_root: where relative paths of pictures in a JSON member start; None: at their shard.
        segments, metadata: name -> where a sample holds it, see ManifestSource.
        download: how pictures at addresses are fetched.
        clean_html: see ManifestSource.
        fields: further text fields for towers to read, name -> where a sample holds it; see ManifestSource.
    """

    def __init__(
        self,
        shards: Mapping[str, str | None],
        catalogue: str | None = None,
        columns: Mapping[str, ColumnNames] | None = None,
        image_root: str | None = None,
        segments: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        download: DownloadSettings | None = None,
        clean_html: bool = False,
        fields: Mapping[str, str | None] | None = None,
    ) -> None:
        self.shards = {split: pattern for split, pattern in shards.items() if pattern is not None}
        self.catalogue, self.download, self.clean_html = catalogue, download, clean_html
        self.image_root = to_path_or_url(image_root) if image_root else None
        self.segments, self.metadata = dict(segments or {}), dict(metadata or {})
        self.columns = {table: dict(names) for table, names in (columns or {}).items()}
        products = self.columns.get("products", {})
        if not products.get("product_id"):
            raise ValueError("data.source.columns.products.product_id: give a place, as json:product_id or __key__")
        queries = {"product_id": products.get("product_id")} | self.columns.get("queries", {})
        self.fields = declared_fields(fields)
        self._products = SampleColumns(with_fields(PRODUCTS, self.fields), products, self.metadata, "metadata")
        self._queries = SampleColumns(with_fields(QUERIES, self.fields), queries, self.segments, "segments")

    def read(self, work_dir: Path, on_issue: OnIssue = raise_issue) -> Manifest:
        name = ", ".join(self.shards.values())
        builder = ManifestBuilder(name, on_issue, tuple(self.segments), tuple(self.metadata), self.clean_html)
        samples = self._samples()
        first = list(islice(samples, NUM_PEEKED))
        self._products.require([sample for _, sample in first])
        self._queries.require([sample for split, sample in first if split is not None])
        for split, sample in chain(first, samples):
            self._add(builder, split, sample)
        return replace(finish(builder, name), download=self.download)

    def describe(self) -> dict[str, Any]:
        said: dict[str, Any] = {"clean_html": True} if self.clean_html else {}
        return (said | {"fields": self.fields} if self.fields else said) | {
            "shards": {split: _shards_id(_expand(pattern)) for split, pattern in self.shards.items()},
            "catalogue": _shards_id(_expand(self.catalogue)) if self.catalogue else None,
            "columns": self.columns,
            "image_root": str(self.image_root) if self.image_root else None,
            "segments": self.segments,
            "metadata": self.metadata,
        }

    def _samples(self) -> Iterator[tuple[str | None, TarSample]]:
        """Yield every sample with its split, None where it is a product alone."""
        patterns: list[tuple[str | None, str]] = [*self.shards.items()]
        if self.catalogue:
            patterns.append((None, self.catalogue))
        wanted = self._products.read_members | self._queries.read_members
        for split, pattern in patterns:
            for shard in _expand(pattern):
                for sample in read_samples(shard, wanted):
                    yield split, sample

    def _add(self, builder: ManifestBuilder, split: str | None, sample: TarSample) -> None:
        root = self.image_root or parent_of(sample.shard)
        try:
            product = self._products.row_of(sample)
            query = {"split": split} | self._queries.row_of(sample) if split is not None else None
        except RowError as error:
            table = PRODUCTS.name if split is None else QUERIES.name
            builder.report(error.at(table, sample.origin, sample.key))
            return
        if query is None:
            builder.add_repeated(sample.origin, product, root)
        else:
            builder.add_pair(sample.origin, product, query, root)


def _expand(pattern: str) -> list[PathOrUrl]:
    """Return the tar files of a pattern.

    Raises:
        ValueError: there are none.
    """
    found = RANGE.search(pattern)
    if found is None:
        shards = find_files(to_path_or_url(pattern), (".tar",))
        if not shards:
            raise ValueError(f"{pattern}: no such file (WebDataset shard)")
        return shards
    first, last = found.groups()
    before, after = pattern[: found.start()], pattern[found.end() :]
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [shard for number in numbers for shard in _expand(f"{before}{number}{after}")]


def _shards_id(shards: Iterable[PathOrUrl]) -> str:
    """Return a short text that changes with the shards: their names and sizes, and pieces of their content."""
    digest = hashlib.blake2b()
    for shard in shards:
        with io_errors_as_value_error(shard):
            size = file_size(shard)
            digest.update(f"{str(shard).rsplit('/', 1)[-1]}\n{size}\n".encode())
            step = max(1, (size - PIECE_SIZE) // (NUM_PIECES - 1))
            for start in range(0, max(1, size - PIECE_SIZE + 1), step):
                digest.update(read_range(shard, start, start + PIECE_SIZE))
    return digest.hexdigest()[:16]
