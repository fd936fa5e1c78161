"""Tables of products and queries that are added to prepared data, read and validated against the rows that are there.

The tables are read as those that the data were prepared from. Rows are checked as in a first preparation, and their ids
against those of the data: a query may name products of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from mim_lightning.data.manifest.builder import ManifestBuilder
from mim_lightning.data.manifest.manifest import PRODUCTS, QUERIES, Manifest, ManifestSource, with_fields
from mim_lightning.data.manifest.rows import IssueType, OnIssue, Product, Query, RowIssue
from mim_lightning.data.manifest.stored_rows import store_rows
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
        manifest: with the products of the data that its queries name.
        known: ids of these.
        replaced_products, replaced_queries: ids that the data have too; a replaced query with its split there.
    """

    manifest: Manifest
    known: Set[str]
    replaced_products: Set[str]
    replaced_queries: Mapping[str, str]


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
    merged = builder.merge_repeated()
    products = {product.product_id: product for product in merged.read_products()}
    queries = list(merged.read_queries())
    there = rows.product_ids(set(products))
    replaced = there if replaces else set[str]()
    for product_id in there - replaced:
        product = products.pop(product_id)
        if not pairs:
            builder.report(_duplicate("products", product.origin, product_id, rows.origin))
    known = rows.products(_named(queries) - products.keys() - deleted)
    products |= known
    answerable = builder.drop_unanswerable(store_rows(products.values(), queries, builder.store))
    queries = _without_duplicates(builder, list(answerable.read_queries()), rows, replaces)
    named = {product_id for query in queries for product_id in (*query.target_ids, *query.reference_ids)}
    used = {name: product for name, product in products.items() if name not in known or name in named}
    tables = source.products or f"{folder}", source.queries
    manifest = Manifest(used, queries, *tables, source.download)
    there_queries = rows.splits_of_queries(query.query_id for query in queries) if replaces else {}
    return Addition(manifest, known.keys() & named, replaced & used.keys(), there_queries)


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


def _named(queries: Iterable[Query]) -> set[str]:
    """Return the products that queries name, and those meant if a table has whole numbers as floats, or not."""
    named = {product_id for query in queries for product_id in (*query.target_ids, *query.reference_ids)}
    return named | {_as_other_number(product_id) for product_id in named}


def _as_other_number(product_id: str) -> str:
    return product_id.removesuffix(".0") if product_id.endswith(".0") else f"{product_id}.0"


def _without_duplicates(builder: ManifestBuilder, queries: list[Query], rows: KnownRows, replaces: bool) -> list[Query]:
    if replaces:
        return queries
    there = rows.splits_of_queries(query.query_id for query in queries)
    for query in queries:
        if query.query_id in there:
            place = f"{rows.origin}, split '{there[query.query_id]}'"
            builder.report(_duplicate("queries", query.origin, query.query_id, place))
    return [query for query in queries if query.query_id not in there]


def _duplicate(table: str, origin: str, row_id: str, place: str) -> RowIssue:
    column = "product_id" if table == "products" else "query_id"
    reason = f"'{row_id}' is already in {place}; add.replace=true replaces it"
    return RowIssue(table, origin, column, row_id, reason, IssueType.DUPLICATE_ID)


def keep_splits(addition: Addition, rows: KnownRows, protocol: Protocol, settings: ShardSettings) -> Addition:
    """Apply a protocol to the queries of an addition: a product of the data stays on the side where it is."""
    if not isinstance(protocol, ProductDisjointSplits):
        return addition
    named = _named(addition.manifest.queries)
    trained, evaluated = rows.num_training_rows(named).keys(), rows.splits_by_product()
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
    manifest = addition.manifest
    new = {name: product for name, product in manifest.products.items() if name not in addition.known}
    alone = replace(manifest, products=new).stored()
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
    kind, evaluated = "product_in_two_splits", rows.splits_by_product(gone)
    named = {product_id for query in addition.manifest.queries for product_id in query.target_ids}
    trained = rows.num_training_rows(named & addition.known, gone)
    for query in addition.manifest.queries:
        for product_id in query.target_ids:
            splits = evaluated.get(product_id, set()) | ({rows.train_split} if product_id in trained else set())
            if others := sorted(splits - {query.split}):
                reason = f"its product '{product_id}' is a target in split '{others[0]}' of {rows.origin}"
                drops = settings.drops(kind)
                yield Finding(kind, "queries", query.origin, query.query_id, "product_id", reason, drops)
                break


def new_products(addition: Addition) -> dict[str, Product]:
    """Return the products that the addition writes to the catalog."""
    products = addition.manifest.products
    return {name: product for name, product in products.items() if name not in addition.known}
