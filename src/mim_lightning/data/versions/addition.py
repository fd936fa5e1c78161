"""Tables of products and queries that are added to prepared data, read and validated against the rows that are there.

The tables are read as those that the data were prepared from. Rows are checked as in a first preparation, and their ids
against those of the data: a query may name products of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from mim_lightning.data.manifest.builder import ManifestBuilder
from mim_lightning.data.manifest.manifest import PRODUCTS, QUERIES, Manifest, ManifestSource, with_fields
from mim_lightning.data.manifest.row_store import RowChanges
from mim_lightning.data.manifest.rows import IssueType, OnIssue, RowIssue
from mim_lightning.data.manifest.stored_rows import PRODUCTS as PRODUCT_COLUMNS
from mim_lightning.data.manifest.stored_rows import QUERIES as QUERY_COLUMNS
from mim_lightning.data.manifest.stored_rows import (
    StoredProducts,
    StoredQueries,
    StoredRows,
    named_products,
    pack_product,
)
from mim_lightning.data.manifest.table import read_rows
from mim_lightning.data.preparation.prepared import ShardSettings
from mim_lightning.data.splits import ProductDisjointSplits, Protocol
from mim_lightning.data.validation.findings import Finding
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.validation.statistics import catalog_statistics, category_balance
from mim_lightning.data.validation.validation_report import ValidationReport
from mim_lightning.data.versions.known_rows import KnownRows

QUERIES_PER_VERSION = 10**9  # default query ids of a version start at a multiple of it


@dataclass(frozen=True)
class Addition:
    """The rows of an addition.

    Attributes:
        manifest: with the products of the data that its queries name; its rows are in a store, of these ids alone are
            in memory.
        known: ids of these.
        replaced_products, replaced_queries: ids that the data have too; a replaced query with its split there.
    """

    manifest: Manifest
    known: Set[str]
    replaced_products: Set[str]
    replaced_queries: Mapping[str, str]

    def new_rows(self) -> StoredRows:
        """Return the rows without the products of the data."""
        rows = self.manifest.stored()
        changes = RowChanges(rows.store, PRODUCT_COLUMNS)
        for position, product_id in rows.store.read(f"SELECT position, product_id FROM {rows.products}"):
            if product_id in self.known:
                changes.drop(position)
        return replace(rows, products=changes.apply(rows.products))


def source_of(settings: Mapping[str, Any], products: str | None, queries: str | None) -> ManifestSource:
    """Return a source of tables that are read as those that data were prepared from.

    Args:
        settings: `source` in the settings of the data.
    """
    texts = settings.get("texts", {})
    return ManifestSource(
        products,
        queries,
        columns=settings.get("columns"),
        image_root=settings.get("image_root"),
        segments=settings.get("segments", ()),
        metadata=settings.get("metadata"),
        clean_html=settings.get("clean_html", False),
        fields=settings.get("fields"),
        encoding={table: found.get("encoding") for table, found in texts.items()},
        delimiter={table: found.get("delimiter") for table, found in texts.items()},
    )


def is_of_pairs(settings: Mapping[str, Any]) -> bool:
    """Return whether data were prepared from one table, in which each row of a query has its product too."""
    return settings.get("products", "") is None and settings.get("queries") is not None


def read_addition(
    source: ManifestSource,
    rows: KnownRows,
    on_issue: OnIssue,
    *,
    pairs: bool,
    replaces: bool,
    version: int,
    deleted: Set[str] = frozenset(),
) -> Addition:
    """Read the tables of an addition.

    Args:
        rows: of the data.
        on_issue: is called with the issue of each dropped row.
        pairs: see `is_of_pairs`; a product that the data have is then no duplicate.
        replaces: whether rows with an id that the data have replace those, or are duplicates.
        version: that the addition becomes.
        deleted: products that the same change deletes: queries cannot name them.
    """
    folder, read = rows.prepared.folder, [source.open(PRODUCTS.name), source.open(QUERIES.name)]
    names = [str(table.name) for table in read if table is not None]
    builder = ManifestBuilder(
        f"{names[0]} or {folder}",
        on_issue,
        source.segments,
        source.metadata,
        source.clean_html,
        first_query=(version - 1) * QUERIES_PER_VERSION,
    )
    _read(builder, source, pairs and read[0] is None)
    merged, store = builder.merge_repeated(), builder.store
    own = merged.product_ids()
    there = rows.product_ids(own)
    replaced = there if replaces else set[str]()
    dropped = there - replaced
    changes = RowChanges(store, PRODUCT_COLUMNS)
    for position, product_id, origin in store.read(f"SELECT position, product_id, origin FROM {merged.products}"):
        if product_id in dropped:
            changes.drop(position)
            if not pairs:
                builder.report(_duplicate("products", origin, product_id, rows.origin))
    known, wanted = set[str](), _meant(merged) - (own - dropped) - deleted
    own_products = changes.apply(merged.products)
    products = store.select("products", f"FROM {own_products}")  # to which those of the data are appended
    for table in {merged.products, own_products}:
        store.drop(table)
    first = store.number(f"SELECT max(position) FROM {products}") + 1

    def known_rows() -> Iterator[tuple[Any, ...]]:
        for position, product in enumerate(rows.products(wanted), first):
            known.add(product.product_id)
            yield pack_product(position, product)

    store.write(products, known_rows())
    answerable = builder.drop_unanswerable(replace(merged, products=products))
    query_ids = {query_id for (query_id,) in store.read(f"SELECT query_id FROM {answerable.queries}")}
    there_queries = rows.splits_of_queries(query_ids)
    if not replaces:
        answerable, there_queries = _without_duplicates(builder, answerable, rows.origin, there_queries), {}
    known &= _named(answerable)
    unused = RowChanges(store, PRODUCT_COLUMNS)
    for position, product_id in store.read(f"SELECT position, product_id FROM {products} WHERE position >= {first}"):
        if product_id not in known:
            unused.drop(position)
    used = replace(answerable, products=unused.apply(products))
    if used.products != products:
        store.drop(products)
    tables = source.products or f"{folder}", source.queries
    manifest = Manifest(StoredProducts(used), StoredQueries(used), *tables, source.download)
    return Addition(manifest, known, replaced, there_queries)


def _read(builder: ManifestBuilder, source: ManifestSource, pairs: bool) -> None:
    products, queries = source.open(PRODUCTS.name), source.open(QUERIES.name)
    wanted = replace(QUERIES, known=(*QUERIES.known, *source.segments), required=(*QUERIES.required, *source.segments))
    specs = with_fields(PRODUCTS, source.fields), with_fields(wanted, source.fields)
    names = source.columns.get("products") or {}, dict(source.columns.get("queries") or {})
    if queries is not None and pairs:
        builder.metadata = builder.metadata or ()
        own = read_rows(queries, specs[0], names[0], builder.report, builder.metadata)
        names[1].setdefault("product_id", names[0].get("product_id", "product_id"))
        others = read_rows(queries, specs[1], names[1], lambda issue: None)
        for (origin, product), (_, query) in zip(own, others, strict=True):
            builder.add_pair(origin, product, query, source.image_root or queries.root)
        return
    if products is not None:
        for origin, row in read_rows(products, specs[0], names[0], builder.report, source.metadata):
            builder.add_product(origin, row, source.image_root or products.root)
    if queries is not None:
        for origin, row in read_rows(queries, specs[1], names[1], builder.report):
            builder.add_query(origin, row, source.image_root or queries.root)


def _named(rows: StoredRows) -> set[str]:
    """Return the products that queries name."""
    found = rows.store.read(f"SELECT DISTINCT product_id FROM ({named_products(rows.queries)})")
    return {product_id for (product_id,) in found}


def _meant(rows: StoredRows) -> set[str]:
    """Return the products that queries name, and those meant if a table has whole numbers as floats, or not."""
    named = _named(rows)
    return named | {_as_other_number(product_id) for product_id in named}


def _as_other_number(product_id: str) -> str:
    return product_id.removesuffix(".0") if product_id.endswith(".0") else f"{product_id}.0"


def _without_duplicates(
    builder: ManifestBuilder, rows: StoredRows, folder: str, there: Mapping[str, str]
) -> StoredRows:
    """Report the queries that the data have, and return the rows without them."""
    changes = RowChanges(rows.store, QUERY_COLUMNS)
    for position, query_id, origin in rows.store.read(f"SELECT position, query_id, origin FROM {rows.queries}"):
        if query_id in there:
            changes.drop(position)
            builder.report(_duplicate("queries", origin, query_id, f"{folder}, split '{there[query_id]}'"))
    return replace(rows, queries=changes.apply(rows.queries))


def _duplicate(table: str, origin: str, row_id: str, place: str) -> RowIssue:
    column = "product_id" if table == "products" else "query_id"
    reason = f"'{row_id}' is already in {place}; add.replace=true replaces it"
    return RowIssue(table, origin, column, row_id, reason, IssueType.DUPLICATE_ID)


def keep_splits(addition: Addition, rows: KnownRows, protocol: Protocol, settings: ShardSettings) -> Addition:
    """Apply a protocol to the queries of an addition: a product of the data stays on the side where it is."""
    if not isinstance(protocol, ProductDisjointSplits):
        return addition
    named = _meant(addition.manifest.stored())
    trained, evaluated = rows.num_training_rows(named).keys(), rows.splits_by_product(named)
    held_out = set()
    for product_id in named:
        splits = evaluated.get(product_id, set())
        if product_id in trained or splits - {settings.val_split}:
            continue
        if splits or protocol.holds_out(product_id):
            held_out.add(product_id)
    manifest = protocol.assign(addition.manifest, held_out, settings.train_split, settings.val_split)
    return replace(addition, manifest=manifest)


def report_alone(report: ValidationReport, addition: Addition, rows: KnownRows) -> ValidationReport:
    """Return a report without the products that were in the data before."""
    alone = addition.new_rows()
    findings = tuple(finding for finding in report.findings if not finding.origin.startswith(rows.origin))
    counts = dict(report.counts)
    for finding in report.findings:
        if finding.origin.startswith(rows.origin):
            counts[finding.kind] -= 1
    num_products = report.num_rows["products"] - len(addition.known)
    return replace(
        report,
        num_rows={**report.num_rows, "products": num_products},
        catalog=catalog_statistics(alone),
        categories=category_balance(alone),
        findings=findings,
        counts={kind: count for kind, count in counts.items() if count},
        missing_split="",
    )


def find_in_other_splits(
    addition: Addition, rows: KnownRows, settings: ValidationSettings, gone: Set[str]
) -> Iterator[Finding]:
    """Yield the queries one of whose products is a target in another split of the data.

    Args:
        gone: ids of queries that the change replaces or deletes: their former rows do not count.
    """
    kind, added = "product_in_two_splits", addition.manifest.stored()
    named = {one for (one,) in added.store.read(f"SELECT DISTINCT unnest(targets) FROM {added.queries}")}
    evaluated = rows.splits_by_product(named, gone)
    trained = rows.num_training_rows(named & addition.known, gone)
    for query in addition.manifest.queries:
        for product_id in query.target_ids:
            splits = evaluated.get(product_id, set()) | ({rows.train_split} if product_id in trained else set())
            if others := sorted(splits - {query.split}):
                reason = f"its product '{product_id}' is a target in split '{others[0]}' of {rows.origin}"
                drops = settings.drops(kind)
                yield Finding(kind, "queries", query.origin, query.query_id, "product_id", reason, drops)
                break
