"""Reads the two tables of a shop file by file, on any machine: counts them first, then makes rows for a join.

A file is the unit of reading, so a large table should be many files. Nothing here imports Ray.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from mim_lightning.data.images.reader import TableCell
from mim_lightning.data.manifest.content_hash import file_id
from mim_lightning.data.manifest.manifest import PRODUCTS, QUERIES, ManifestSource, with_fields
from mim_lightning.data.manifest.rows import (
    OnIssue,
    Product,
    Query,
    Row,
    RowError,
    RowIssue,
    known_id,
    parse_product,
    parse_query,
    without_html,
)
from mim_lightning.data.manifest.table import Table, TableSpec, read_rows
from mim_lightning.data.preparation.hash_layout import HashLayout
from mim_lightning.ids import NO_KEY, hash_id
from mim_lightning.io.paths import PathOrUrl

ROWS_AT_ONCE = 5_000  # of an Arrow table
CATALOG = "catalogue"


@dataclass(frozen=True)
class ShopTables:
    """The tables of products and queries, and how they are read, as in ManifestSource."""

    products: Table
    queries: Table | None
    columns: Mapping[str, Any]
    image_root: PathOrUrl | None
    segments: Sequence[str]
    metadata: Sequence[str] | None
    clean_html: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)

    def files(self) -> list[dict[str, Any]]:
        """Return every file as a row: {"table": ..., "file": its number in the table}."""
        tables = {PRODUCTS.name: self.products, QUERIES.name: self.queries}
        num_files = {name: len(table.parts) for name, table in tables.items() if table is not None}
        return [{"table": name, "file": file_idx} for name, num in num_files.items() for file_idx in range(num)]

    def read_products(self, file_idx: int, on_issue: OnIssue) -> Iterator[Product]:
        for origin, row, root in self._rows(self.products, PRODUCTS, file_idx, on_issue):
            try:
                product = parse_product(row, root, origin, self.metadata)
                _validate_no_cells(product.images, origin)
                yield product
            except RowError as error:
                on_issue(error.at(PRODUCTS.name, origin, known_id(row, "product_id")))

    def read_queries(self, file_idx: int, on_issue: OnIssue) -> Iterator[Query]:
        assert self.queries is not None
        spec = replace(
            QUERIES, known=(*QUERIES.known, *self.segments), required=(*QUERIES.required, "query_id", *self.segments)
        )
        for origin, row, root in self._rows(self.queries, spec, file_idx, on_issue):
            row_id = known_id(row, "query_id")
            try:
                if not row_id:  # its number in the whole table is unknown here
                    raise RowError("query_id", "empty; engine=ray needs the id of every query")
                query = parse_query(row, root, origin, 0, self.segments)
                _validate_no_cells((query.image,), origin)
                yield query
            except RowError as error:
                on_issue(error.at(QUERIES.name, origin, row_id))

    def _rows(
        self, table: Table, spec: TableSpec, file_idx: int, on_issue: OnIssue
    ) -> Iterator[tuple[str, Row, PathOrUrl]]:
        names = self.columns.get(spec.name) or {}
        metadata = self.metadata if spec.name == PRODUCTS.name else None
        root = self.image_root or table.root
        part = replace(table, parts=(table.parts[file_idx],))
        for origin, row in read_rows(part, with_fields(spec, self.fields), names, on_issue, metadata):
            yield origin, without_html(row) if self.clean_html else row, root


def shop_tables(source: ManifestSource) -> ShopTables:
    """Find the files of a source's tables.

    Raises:
        ValueError: there are none, or there is no table of products.
    """
    if source.products is None:
        raise ValueError("data.source.products=null: engine=ray needs a table of products and a table of queries")
    products, queries = source.open(PRODUCTS.name), source.open(QUERIES.name)
    assert products is not None
    options = source.columns, source.image_root, source.segments, source.metadata, source.clean_html, source.fields
    return ShopTables(products, queries, *options)


@dataclass(frozen=True)
class FileCount:
    """What one file of a table contains."""

    table: str
    file_idx: int
    identity: str  # see `file_id`
    num_rows: int  # invalid ones included
    samples: Mapping[str, int]  # by set
    issues: tuple[RowIssue, ...]


def count_file(tables: ShopTables, table: str, file_idx: int, train_split: str) -> FileCount:
    """Read a whole file to count the samples it makes, and to find invalid rows."""
    issues: list[RowIssue] = []
    samples: Counter[str] = Counter()
    num_rows = 0
    if table == PRODUCTS.name:
        for product in tables.read_products(file_idx, issues.append):
            num_rows += 1
            samples[CATALOG] += max(1, len(product.images))
        place = tables.products.parts[file_idx].path
    else:
        assert tables.queries is not None
        for query in tables.read_queries(file_idx, issues.append):
            num_rows += 1
            samples[set_of(query)] += len(query.target_ids) if query.split == train_split else 1
        place = tables.queries.parts[file_idx].path
    return FileCount(table, file_idx, file_id(place), num_rows + len(issues), dict(samples), tuple(issues))


def set_of(query: Query) -> str:
    return f"queries/{query.split}"


def join_rows(
    tables: ShopTables, table: str, file_idx: int, layout: HashLayout, num_parts: int, train_split: str
) -> Iterator[Any]:
    """Yield the rows of a file as Arrow tables ready for the join, a row a product, or a query and product.

    Columns: part (int64, of the join: equal for a product and its queries), product_id, product and query (pickled, one
    of them null), shard (int64), turn_key (int64: its rank among the product's training rows, NO_KEY for other rows).
    """
    rows: Iterator[dict[str, Any]]
    if table == PRODUCTS.name:
        products = tables.read_products(file_idx, _ignore)
        rows = (_product_row(product) for product in products)
    else:
        queries = tables.read_queries(file_idx, _ignore)
        rows = (row for query in queries for row in _query_rows(query, layout, train_split))
    for chunk in _chunks(rows):
        for row in chunk:
            row["part"] = hash_id(row["product_id"]) % num_parts
        yield _arrow(chunk, _join_schema())


def catalog_rows(
    tables: ShopTables, file_idx: int, layout: HashLayout, finished: frozenset[int] = frozenset()
) -> Iterator[Any]:
    """Yield the products of a file as Arrow tables, see `joined_schema`; without those of finished shards."""
    for chunk in _chunks(tables.read_products(file_idx, _ignore)):
        placed = [(layout.shard_of(CATALOG, product.product_id), product) for product in chunk]
        rows = [{"shard": shard, "body": pickle.dumps(product)} for shard, product in placed if shard not in finished]
        yield _arrow(rows, joined_schema())


def joined_schema() -> Any:
    """Return the columns of rows to be grouped into shards: shard (int64), body (a pickled product, or a Joined)."""
    import pyarrow

    return pyarrow.schema([("shard", pyarrow.int64()), ("body", pyarrow.binary())])


def _join_schema() -> Any:
    import pyarrow

    number, data = pyarrow.int64(), pyarrow.binary()
    kinds = {"part": number, "product_id": pyarrow.string(), "product": data, "query": data}
    return pyarrow.schema([*kinds.items(), ("shard", number), ("turn_key", number)])


def _product_row(product: Product) -> dict[str, Any]:
    row = {"product_id": product.product_id, "product": pickle.dumps(product), "query": None}
    return {**row, "shard": NO_KEY, "turn_key": NO_KEY}


def _query_rows(query: Query, layout: HashLayout, train_split: str) -> Iterator[dict[str, Any]]:
    shard, packed = layout.shard_of(set_of(query), query.query_id), pickle.dumps(query)
    for product_id in dict.fromkeys((*query.target_ids, *query.reference_ids)):
        is_trained = query.split == train_split and product_id in query.target_ids
        turn_key = hash_id(query.query_id) if is_trained else NO_KEY
        row = {"product_id": product_id, "product": None, "query": packed}
        yield {**row, "shard": shard, "turn_key": turn_key}


def _validate_no_cells(images: Iterable[Any], origin: str) -> None:
    if any(isinstance(image, TableCell) for image in images):
        raise ValueError(
            f"{origin}, column 'image': contains encoded images; engine=ray reads images from paths and URLs"
        )


def _ignore(issue: RowIssue) -> None:
    """Issues were reported when the file was counted."""


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, ROWS_AT_ONCE)):
        yield chunk


def _arrow(rows: list[dict[str, Any]], schema: Any) -> Any:
    import pyarrow

    return pyarrow.Table.from_pylist(rows, schema=schema)
