"""WebDataset shards as a source: a sample is a query with a relevant product.

Images of the manifest point into the tar files; nothing is unpacked or copied. The catalog is the products of all
samples, and of shards that contain products only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mim_lightning.data.images.download import DownloadSettings
from mim_lightning.data.manifest.builder import ManifestBuilder
from mim_lightning.data.manifest.manifest import (
    PRODUCTS,
    QUERIES,
    Manifest,
    declared_fields,
    finish_manifest,
    with_fields,
)
from mim_lightning.data.manifest.rows import OnIssue, RowError, raise_issue
from mim_lightning.data.manifest.table import IMAGE, ColumnNames, TableSpec, validate_name
from mim_lightning.data.sources.tar_reader import KEY, TarSample, read_samples
from mim_lightning.fields import DECLARED
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
NUM_PIECES, PIECE_SIZE = 8, 1 << 16  # of a shard, hashed to identify it
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
ALTERNATIVES = "|"
_Keys = tuple[tuple[str, str], ...]  # (member, key of its JSON or ""): the first that a sample has is read


class WebDatasetSource:
    """Pairs of query and product in tar files.

    Args:
        shards: by split, the tar files: a path or URL, with {000..123} or * for several; None: no such split.
        catalog: tar files whose samples are products only; they are added to the catalog.
        columns: our column name -> its key in a sample, by table: a member ("query.jpg"), a key of a JSON member
            ("json:product.id") or "__key__"; of several with "|" between them the first that exists; None: there is
            none. Without a column for it, the split of a query is that of its shards.
        image_root: where relative paths of images in a JSON member start; None: at their shard.
        segments, metadata: name -> key in a sample, see ManifestSource.
        download: how images at URLs are downloaded.
        clean_html: see ManifestSource.
        fields: further text fields for towers, name -> key in a sample; see ManifestSource.
    """

    def __init__(
        self,
        shards: Mapping[str, str | None],
        catalog: str | None = None,
        columns: Mapping[str, ColumnNames] | None = None,
        image_root: str | None = None,
        segments: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        download: DownloadSettings | None = None,
        clean_html: bool = False,
        fields: Mapping[str, str | None] | None = None,
    ) -> None:
        self.shards = {split: pattern for split, pattern in shards.items() if pattern is not None}
        self.catalog, self.download, self.clean_html = catalog, download, clean_html
        self.image_root = to_path_or_url(image_root) if image_root else None
        self.segments, self.metadata = dict(segments or {}), dict(metadata or {})
        self.columns = {table: dict(names) for table, names in (columns or {}).items()}
        products = self.columns.get("products", {})
        if not products.get("product_id"):
            raise ValueError(
                "data.source.columns.products.product_id: give a key of a sample, such as json:product_id or __key__"
            )
        queries = {"product_id": products.get("product_id")} | self.columns.get("queries", {})
        self.fields = declared_fields(fields)
        self._products = SampleColumns(with_fields(PRODUCTS, self.fields), products, self.metadata, "metadata")
        self._queries = SampleColumns(with_fields(QUERIES, self.fields), queries, self.segments, "segments")

    def read(self, work_dir: Path, on_issue: OnIssue = raise_issue) -> Manifest:
        name = ", ".join(self.shards.values())
        builder = ManifestBuilder(name, on_issue, tuple(self.segments), tuple(self.metadata), self.clean_html)
        samples = self._samples()
        first = list(islice(samples, NUM_PEEKED))
        self._products.validate([sample for _, sample in first])
        self._queries.validate([sample for split, sample in first if split is not None])
        for split, sample in chain(first, samples):
            self._add(builder, split, sample)
        return replace(finish_manifest(builder, name), download=self.download)

    def describe(self) -> dict[str, Any]:
        optional: dict[str, Any] = {"clean_html": True} if self.clean_html else {}
        return (optional | {"fields": self.fields} if self.fields else optional) | {
            "shards": {split: _shards_id(_expand(pattern)) for split, pattern in self.shards.items()},
            "catalogue": _shards_id(_expand(self.catalog)) if self.catalog else None,
            "columns": self.columns,
            "image_root": str(self.image_root) if self.image_root else None,
            "segments": self.segments,
            "metadata": self.metadata,
        }

    def _samples(self) -> Iterator[tuple[str | None, TarSample]]:
        """Yield every sample with its split, None for a product without a query."""
        patterns: list[tuple[str | None, str]] = [*self.shards.items()]
        if self.catalog:
            patterns.append((None, self.catalog))
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
    """Return a hash of the shards' names, sizes and pieces of their content."""
    digest = hashlib.blake2b()
    for shard in shards:
        with io_errors_as_value_error(shard):
            size = file_size(shard)
            digest.update(f"{str(shard).rsplit('/', 1)[-1]}\n{size}\n".encode())
            step = max(1, (size - PIECE_SIZE) // (NUM_PIECES - 1))
            for start in range(0, max(1, size - PIECE_SIZE + 1), step):
                digest.update(read_range(shard, start, start + PIECE_SIZE))
    return digest.hexdigest()[:16]


class SampleColumns:
    """The columns of one table, read from samples.

    Args:
        spec: the table, with the keys of declared fields.
        columns: our column name -> key in a sample.
        further: name -> key in a sample, of the user's segments or metadata.
        further_key: config key of `further`.
    """

    def __init__(self, spec: TableSpec, columns: ColumnNames, further: Mapping[str, str], further_key: str) -> None:
        for ours in columns:
            validate_name(ours, spec.known, f"data.source.columns.{spec.name}", "column")
        self.spec = spec
        self.columns = {name: _parse(text) for name, text in columns.items() if text}
        self.further = {name: _parse(text) for name, text in further.items() if text}
        self.fields = {name: _parse(text) for name, text in spec.fields.items()}
        self._config_keys = {name: f"data.source.columns.{spec.name}.{name}" for name in self.columns}
        self._config_keys |= {name: f"data.source.{further_key}.{name}" for name in self.further}
        self._config_keys |= {name: f"data.source.fields.{name}" for name in self.fields}

    @property
    def read_members(self) -> set[str]:
        """The members whose content is read; images are not."""
        return {
            member
            for name, keys in (self.columns | self.further | self.fields).items()
            for member, key in keys
            if (key or name != IMAGE) and member != KEY
        }

    def validate(self, samples: Sequence[TarSample]) -> None:
        """Check that every mapped key exists in some sample.

        Raises:
            ValueError: one does not; names the config key, and the keys of the samples.
        """
        if not samples:
            return
        found = {key for sample in samples for key in _list_keys(sample)}
        for name, keys in (self.columns | self.further | self.fields).items():
            if not found.intersection(keys):
                wanted = ALTERNATIVES.join(map(_written, keys))
                raise ValueError(
                    f"{self._config_keys[name]}={wanted}: none of the first {len(samples)} samples has it; "
                    f"they have {', '.join(sorted(map(_written, found)))}; null if there is none"
                )

    def row_of(self, sample: TarSample) -> dict[str, Any]:
        """Return the row of a sample by our column names, with an `ImageRef` for an image member.

        Raises:
            RowError: a member is not UTF-8, or not JSON.
        """
        row = {name: _look_up(sample, keys, name == IMAGE) for name, keys in self.columns.items()}
        further = {name: _look_up(sample, keys, False) for name, keys in self.further.items()}
        if self.fields:
            row[DECLARED] = {name: _look_up(sample, keys, False) for name, keys in self.fields.items()}
        return row | ({self.spec.others: further} if self.spec.others else further)


def _parse(text: str) -> _Keys:
    parts = (part.strip().partition(":") for part in text.split(ALTERNATIVES))
    return tuple((member.lower() if member != KEY else KEY, key) for member, _, key in parts)


def _written(key: tuple[str, str]) -> str:
    return f"{key[0]}:{key[1]}" if key[1] else key[0]


def _look_up(sample: TarSample, keys: _Keys, is_image: bool) -> Any:
    for member, key in keys:
        if member == KEY:
            return sample.key
        if member not in sample.members:
            continue
        if not key:
            return [sample.members[member]] if is_image else sample.text(member)
        value = sample.value(member, key)
        if value is not None:
            return value
    return None


def _list_keys(sample: TarSample) -> Iterator[tuple[str, str]]:
    yield KEY, ""
    for member in sample.members:
        yield member, ""
        if member in sample.contents:
            with suppress(RowError):  # reported when the sample is read, if the member is mapped as JSON
                yield from ((member, key) for key in _json_keys(sample.json_object(member)))


def _json_keys(content: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield f"{prefix}{name}"
            yield from _json_keys(value, f"{prefix}{name}.")
