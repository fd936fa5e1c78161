"""The manifest: products and queries from two tables, or from one of pairs, as validated rows.

Every issue names file, row and column. `Source` is the interface of everything that a manifest can be read from;
`ManifestSource` reads CSV, JSONL and Parquet files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mim_lightning.data.images.download import DownloadSettings
from mim_lightning.data.manifest.builder import ManifestBuilder
from mim_lightning.data.manifest.click_report import ClickReport
from mim_lightning.data.manifest.content_hash import table_id
from mim_lightning.data.manifest.decoding import TextFormat
from mim_lightning.data.manifest.rows import KIND, OnIssue, Product, Query, raise_issue
from mim_lightning.data.manifest.stored_rows import StoredProducts, StoredQueries, StoredRows, store_rows
from mim_lightning.data.manifest.table import ColumnNames, Table, TableSpec, open_table, read_rows, validate_name
from mim_lightning.fields import TABLES, side_of, validate_declared
from mim_lightning.io.paths import PathOrUrl, to_path_or_url

__all__ = ["Manifest", "ManifestSource", "Product", "Query", "Source", "read_manifest", "read_tables"]

PRODUCTS = TableSpec(
    "products",
    known=("product_id", "image", "title", "description", "category"),
    required=("product_id", "image", "title"),
    others="metadata",
)
QUERIES = TableSpec(
    "queries",
    known=("query_id", "split", "image", "text", "product_id", "grade", "shown_product_id", "weight", KIND),
    required=("split", "image", "product_id"),
)


ByTable = Mapping[str, str | None] | str | None  # one for both tables, or by "products" and "queries"


@dataclass(frozen=True)
class Manifest:
    """The rows of a data set; those of our sources are read from a `RowStore` each time they are needed."""

    products: Mapping[str, Product]
    queries: Sequence[Query]
    products_path: Path | str  # or another name of the table, for errors
    queries_path: Path | str | None  # None: a catalog without queries
    download: DownloadSettings | None = None  # of images at URLs
    clicks: ClickReport | None = None  # of a log that answers were made from

    def stored(self) -> StoredRows:
        """Return the tables of the rows; rows that are in memory are written to a store first."""
        products, queries = self.products, self.queries
        if (
            isinstance(products, StoredProducts)
            and isinstance(queries, StoredQueries)
            and products.rows == queries.rows
        ):
            return products.rows
        return store_rows(products.values(), queries)

    def in_memory(self) -> Manifest:
        """Return a manifest whose rows are in memory, for a few of them that are often looked up."""
        return replace(self, products=dict(self.products.items()), queries=list(self.queries))

    def with_rows(self, rows: StoredRows) -> Manifest:
        """Return a manifest of the same data set with other rows."""
        return replace(self, products=StoredProducts(rows), queries=StoredQueries(rows))

    def split(self, name: str) -> list[Query]:
        """Return the queries of one split, at least one.

        Raises:
            ValueError: the split is empty.
        """
        rows = [query for query in self.queries if query.split == name]
        self.validate_split(name, rows)
        return rows

    def validate_split(self, name: str, queries: Iterable[Query] | None = None) -> None:
        """Raise a ValueError if the split has no queries.

        Args:
            queries: those of the split, if they were looked for before.
        """
        if not any(query.split == name for query in (self.queries if queries is None else queries)):
            splits = sorted({query.split for query in self.queries})
            raise ValueError(f"{self.queries_path}: column 'split' has no row '{name}'; it has {splits}")


class Source(Protocol):
    """Where a manifest comes from; `work_dir` is a folder for files that the source writes itself."""

    def read(self, work_dir: Path, on_issue: OnIssue = raise_issue) -> Manifest:
        """Read everything; an invalid row is reported to `on_issue` and dropped.

        Raises:
            ValueError: a table or a column is missing.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return what identifies the data: arguments, and the `table_id` of tables."""
        ...


class ManifestSource:
    """A manifest in two tables, or in one of pairs.

    Args:
        products: the table of products: a path or URL of a file, a folder or a pattern; None: each row of `queries`
            has its product too.
        queries: the table of queries; None: a catalog without queries, to search but not to train on.
        columns: our column name -> the file's, by table; None: the file has no such column.
        image_root: where relative image paths start; None: at their table.
        segments: further columns of the queries, for metrics by segment; a column `kind` is one by default.
        metadata: further columns of the products to keep, to display and filter by; None: all (of pairs: none).
        download: how images at URLs are downloaded.
        encoding: of tables in CSV or JSONL that are not UTF-8, or of each by its name; None: see TextFormat.
        delimiter: of tables in CSV, or of each by its name; None: detected in the header.
        clean_html: remove HTML tags from titles, descriptions, categories, metadata and queries, and decode entities.
        fields: further text fields for towers to read: name -> the column, of the table that the name's first word says
            (`query_category` of the queries, `product_brand` of the products); None switches one off.
    """

    def __init__(
        self,
        products: str | None,
        queries: str | None,
        columns: Mapping[str, ColumnNames] | None = None,
        image_root: str | None = None,
        segments: Sequence[str] = (),
        metadata: Sequence[str] | None = None,
        download: DownloadSettings | None = None,
        encoding: ByTable = None,
        delimiter: ByTable = None,
        clean_html: bool = False,
        fields: Mapping[str, str | None] | None = None,
    ) -> None:
        if not isinstance(columns, Mapping | None):
            raise ValueError(f"data.source.columns={columns}: give a mapping of tables to their columns")
        if isinstance(segments, str) or not isinstance(segments, Sequence):
            raise ValueError(f"data.source.segments={segments}: give a list of columns")
        self.products = to_path_or_url(products) if products else None
        self.queries = to_path_or_url(queries) if queries else None
        self.columns, self.segments, self.download = columns or {}, tuple(segments), download
        self.image_root = to_path_or_url(image_root) if image_root else None
        self.metadata = None if metadata is None else tuple(metadata)
        self.text_formats, self.clean_html = _text_formats(encoding, delimiter), clean_html
        self.fields = declared_fields(fields)

    def read(self, work_dir: Path, on_issue: OnIssue = raise_issue) -> Manifest:
        products, queries = self.open(PRODUCTS.name), self.open(QUERIES.name)
        options = self.columns, self.image_root, self.segments, self.metadata, on_issue, self.clean_html, self.fields
        manifest = read_tables(products, queries, *options)
        return replace(
            manifest,
            products_path=self.products or manifest.products_path,
            queries_path=self.queries,
            download=self.download,
        )

    def open(self, table: str) -> Table | None:
        """Return the table of products or queries, None where there is none.

        Raises:
            ValueError: no such file, or one that is not a table.
        """
        path = self.products if table == PRODUCTS.name else self.queries
        return open_table(path, table, self.text_formats[table]) if path else None

    def describe(self) -> dict[str, Any]:
        return self.describe_tables(*(table_id(path) if path else None for path in (self.products, self.queries)))

    def describe_tables(self, products_id: str | None, queries_id: str | None) -> dict[str, Any]:
        """Return `describe` of tables whose ids are known."""
        metadata = {} if self.metadata is None else {"metadata": list(self.metadata)}
        texts = {name: settings.describe() for name, settings in self.text_formats.items() if settings.describe()}
        return (
            metadata
            | ({"texts": texts} if texts else {})
            | ({"clean_html": True} if self.clean_html else {})
            | ({"fields": self.fields} if self.fields else {})
            | {
                "products": products_id,
                "queries": queries_id,
                "image_root": str(self.image_root) if self.image_root else None,
                "columns": changed_names(self.columns),
                "segments": list(self.segments),
            }
        )


def _text_formats(encoding: ByTable, delimiter: ByTable) -> dict[str, TextFormat]:
    given = {"encoding": encoding, "delimiter": delimiter}
    for name, value in given.items():
        for table in value if isinstance(value, Mapping) else ():
            validate_name(table, (PRODUCTS.name, QUERIES.name), f"data.source.{name}", "table")
    return {
        table: TextFormat(
            **{name: value.get(table) if isinstance(value, Mapping) else value for name, value in given.items()},
            table=table,
        )
        for table in (PRODUCTS.name, QUERIES.name)
    }


def declared_fields(fields: Mapping[str, str | None] | None) -> dict[str, str]:
    """Return the declared fields of a source's config that are not switched off, with their columns."""
    found = {name: column for name, column in (fields or {}).items() if column is not None}
    validate_declared(found)
    return found


def with_fields(spec: TableSpec, fields: Mapping[str, str]) -> TableSpec:
    """Return a table's spec with those declared fields that are its columns."""
    return replace(spec, fields={name: column for name, column in fields.items() if TABLES[side_of(name)] == spec.name})


def changed_names(columns: Mapping[str, ColumnNames]) -> dict[str, dict[str, str | None]]:
    """Return by table the columns whose name is not ours."""
    return {table: {ours: name for ours, name in names.items() if name != ours} for table, names in columns.items()}


def read_manifest(
    products_path: PathOrUrl | None,
    queries_path: PathOrUrl | None,
    columns: Mapping[str, ColumnNames] | None = None,
    image_root: PathOrUrl | None = None,
    segments: Sequence[str] = (),
    metadata: Sequence[str] | None = None,
    on_issue: OnIssue = raise_issue,
) -> Manifest:
    """Read both tables; see ManifestSource for the arguments.

    Raises:
        ValueError: a file or column is missing, or what `on_issue` raises: an id is empty, repeated or unknown.
    """
    products = open_table(products_path, PRODUCTS.name) if products_path else None
    queries = open_table(queries_path, QUERIES.name) if queries_path else None
    manifest = read_tables(products, queries, columns, image_root, segments, metadata, on_issue)
    return replace(manifest, products_path=products_path or manifest.products_path, queries_path=queries_path)


def read_tables(
    products: Table | None,
    queries: Table | None,
    columns: Mapping[str, ColumnNames] | None = None,
    image_root: PathOrUrl | None = None,
    segments: Sequence[str] = (),
    metadata: Sequence[str] | None = None,
    on_issue: OnIssue = raise_issue,
    clean_html: bool = False,
    fields: Mapping[str, str] | None = None,
) -> Manifest:
    """Read tables that are open; see ManifestSource for the arguments.

    Raises:
        ValueError: a column is missing, no product is valid, or what `on_issue` raises.
    """
    columns = columns or {}
    for table in columns:
        validate_name(table, (PRODUCTS.name, QUERIES.name), "data.source.columns", "table")
    names = columns.get("products") or {}, columns.get("queries") or {}
    wanted = replace(QUERIES, known=(*QUERIES.known, *segments), required=(*QUERIES.required, *segments))
    specs = with_fields(PRODUCTS, fields or {}), with_fields(wanted, fields or {})
    first = products or queries
    if first is None:
        raise ValueError("data.source: neither products nor queries; give at least a table of products")
    builder = ManifestBuilder(first.name, on_issue, segments, metadata, clean_html)
    if products is None:
        _read_pairs(builder, first, specs, names, image_root)
    else:
        for origin, row in read_rows(products, specs[0], names[0], builder.report, metadata):
            builder.add_product(origin, row, image_root or products.root)
        if queries is not None:
            for origin, row in read_rows(queries, specs[1], names[1], builder.report):
                builder.add_query(origin, row, image_root or queries.root)
    return finish_manifest(builder, queries.name if queries else None)


def _read_pairs(
    builder: ManifestBuilder,
    table: Table,
    specs: tuple[TableSpec, TableSpec],
    names: tuple[ColumnNames, ColumnNames],
    root: PathOrUrl | None,
) -> None:
    """Read one table twice in parallel: the products and the queries of its rows."""
    own, others = names
    if others.get("product_id", "product_id") == "product_id":  # not renamed: as the product's
        others = {**others, "product_id": own.get("product_id", "product_id")}
    builder.metadata = builder.metadata or ()
    products = read_rows(table, specs[0], own, builder.report, builder.metadata)
    pairs = zip(products, read_rows(table, specs[1], others, lambda issue: None), strict=True)
    for (origin, product), (_, query) in pairs:
        builder.add_pair(origin, product, query, root or table.root)


def finish_manifest(builder: ManifestBuilder, queries_name: str | None) -> Manifest:
    """Return the manifest of all rows that were added.

    Raises:
        ValueError: no product is valid.
    """
    rows = builder.finish()
    return Manifest(StoredProducts(rows), StoredQueries(rows), builder.products_name, queries_name)
