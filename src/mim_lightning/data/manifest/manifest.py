"""The manifest: a table of products and a table of queries, or one of pairs, read into checked rows.

CSV, Parquet or JSONL comes in, a Manifest goes out; every issue names file, row and column, and is reported
to an OnIssue. Sources end here, `check` and `prepared` begin here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mim_lightning.data.images.download import DownloadSettings
from mim_lightning.data.manifest.builder import ManifestDraft
from mim_lightning.data.manifest.content_hash import table_id
from mim_lightning.data.manifest.decoding import TextFormat
from mim_lightning.data.manifest.row_issue import OnIssue, raise_issue
from mim_lightning.data.manifest.rows import KIND, Product, Query
from mim_lightning.data.manifest.table import ColumnNames, Table, TableSpec, open_table, read_rows, require_name
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
    products: dict[str, Product]
    queries: list[Query]
    products_path: Path | str  # or what else errors call the table
    queries_path: Path | str | None  # None: a catalogue alone, to be searched
    download: DownloadSettings | None = None  # how pictures at addresses are fetched

    def split(self, name: str) -> list[Query]:
        """Return the queries of one split, at least one.

        Raises:
            ValueError: the split is empty.
        """
        rows = [query for query in self.queries if query.split == name]
        if not rows:
            splits = sorted({query.split for query in self.queries})
            raise ValueError(f"{self.queries_path}: column 'split' has no row '{name}'; it has {splits}")
        return rows


class Source(Protocol):
    """Where a manifest comes from; `work_dir` is a folder the source may fill with files of its own."""

    def read(self, work_dir: Path, on_issue: OnIssue = raise_issue) -> Manifest:
        """Read everything; an invalid row is reported to `on_issue` and left out.

        Raises:
            ValueError: a table or a column is missing.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return what tells this source's data from another's: arguments, or the tables' `table_id`."""
        ...


class ManifestSource:
    """A manifest in two tables, or in one of pairs.

    Args:
        products: the table of products: a path or address of a file, a folder or a pattern; None: each row of
            `queries` holds its product besides.
        queries: the table of queries; None: a catalogue alone, to be searched but not trained on.
        columns: our column name -> the file's, by table; None: there is none.
        image_root: where relative image paths start; None: at their table.
        segments: further columns of the queries by which results are told apart; a column `kind` is one by itself.
        metadata: further columns of the products to keep, to show and filter by; None: all (of pairs: none).
        download: how pictures at addresses are fetched.
        encoding: of tables in CSV or JSONL that are not UTF-8, or of each by its name; None: see TextFormat.
        delimiter: of tables in CSV, or of each by its name; None: the one that the header speaks for.
        clean_html: titles, descriptions, categories, metadata and queries lose HTML tags, and entities become letters.
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
            ValueError: no such file, or one that is no table.
        """
        place = self.products if table == PRODUCTS.name else self.queries
        return open_table(place, table, self.text_formats[table]) if place else None

    def describe(self) -> dict[str, Any]:
        ids = (table_id(place) if place else None for place in (self.products, self.queries))
        return self.describe_tables(*ids)

    def describe_tables(self, products_id: str | None, queries_id: str | None) -> dict[str, Any]:
        """Do the work of `describe` where the ids of the tables are known already."""
        said = {} if self.metadata is None else {"metadata": list(self.metadata)}
        texts = {name: settings.describe() for name, settings in self.text_formats.items() if settings.describe()}
        return (
            said
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
    said = {"encoding": encoding, "delimiter": delimiter}
    for name, value in said.items():
        for table in value if isinstance(value, Mapping) else ():
            require_name(table, (PRODUCTS.name, QUERIES.name), f"data.source.{name}", "table")
    return {
        table: TextFormat(
            **{name: value.get(table) if isinstance(value, Mapping) else value for name, value in said.items()},
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
    """Return a table's spec with those of the declared fields that it holds."""
    return replace(spec, fields={name: column for name, column in fields.items() if TABLES[side_of(name)] == spec.name})


def changed_names(columns: Mapping[str, ColumnNames]) -> dict[str, dict[str, str | None]]:
    """Return by table those columns alone whose name is not ours."""
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
    """Read and check both tables; see ManifestSource for the arguments.

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
    """Do the work of `read_manifest` on tables that are open already."""
    columns = columns or {}
    for table in columns:
        require_name(table, (PRODUCTS.name, QUERIES.name), "data.source.columns", "table")
    names = columns.get("products") or {}, columns.get("queries") or {}
    wanted = replace(QUERIES, known=(*QUERIES.known, *segments), required=(*QUERIES.required, *segments))
    specs = with_fields(PRODUCTS, fields or {}), with_fields(wanted, fields or {})
    first = products or queries
    if first is None:
        raise ValueError("data.source: neither products nor queries; give at least a table of products")
    draft = ManifestDraft(first.name, on_issue, segments, metadata, clean_html)
    if products is None:
        _read_pairs(draft, first, specs, names, image_root)
    else:
        for origin, row in read_rows(products, specs[0], names[0], draft.report, metadata):
            draft.add_product(origin, row, image_root or products.root)
        if queries is not None:
            for origin, row in read_rows(queries, specs[1], names[1], draft.report):
                draft.add_query(origin, row, image_root or queries.root)
    return finish(draft, queries.name if queries else None)


def _read_pairs(
    draft: ManifestDraft,
    table: Table,
    specs: tuple[TableSpec, TableSpec],
    names: tuple[ColumnNames, ColumnNames],
    root: PathOrUrl | None,
) -> None:
    """Read the same table twice at once: for the products, and for the queries, of its rows."""
    own, others = names
    if others.get("product_id", "product_id") == "product_id":  # not renamed: as the product's
        others = {**others, "product_id": own.get("product_id", "product_id")}
    draft.metadata = draft.metadata or ()
    products = read_rows(table, specs[0], own, draft.report, draft.metadata)
    pairs = zip(products, read_rows(table, specs[1], others, lambda issue: None), strict=True)
    for (origin, product), (_, query) in pairs:
        draft.add_pair(origin, product, query, root or table.root)


def finish(draft: ManifestDraft, queries_name: str | None) -> Manifest:
    """Return the manifest of all rows that were added.

    Raises:
        ValueError: not one product.
    """
    if not draft.products:
        reason = f"not one product can be used; {draft.first_issue}" if draft.first_issue else "the table has no rows"
        raise ValueError(f"{draft.products_name}: {reason}")
    draft.require_products()
    return Manifest(draft.products, list(draft.queries.values()), draft.products_name, queries_name)
