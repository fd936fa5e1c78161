"""A builder of manifests: rows are added one by one, and validated against each other at the end.

An invalid row is reported to `on_issue` and dropped. Products and queries have a table each, or come in pairs (a query
and a product relevant to it), in which either may be repeated. No id is kept in memory: repeated ids and unknown
products are found by queries to a RowStore.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from mim_lightning.data.manifest.row_store import RowChanges, RowStore, RowWriter
from mim_lightning.data.manifest.rows import (
    IssueType,
    NothingRelevantError,
    OnIssue,
    Product,
    Query,
    Row,
    RowError,
    RowIssue,
    join_query,
    known_id,
    merge_query,
    parse_product,
    parse_query,
    without_html,
)
from mim_lightning.data.manifest.stored_rows import (
    PRODUCTS,
    QUERIES,
    StoredRows,
    named_products,
    pack_product,
    pack_query,
    unpack_product,
    unpack_query,
)
from mim_lightning.io.paths import PathOrUrl

Item = TypeVar("Item", Product, Query)


@dataclass
class ManifestBuilder:
    """The rows added so far.

    Args:
        products_name: of the table of products, in messages.
        on_issue: is called by `finish` with the issue of each dropped row, in the order of the rows.
        segments, metadata, clean_html: see ManifestSource.
    """

    products_name: str
    on_issue: OnIssue
    segments: Sequence[str] = ()
    metadata: Sequence[str] | None = None
    clean_html: bool = False
    first_query: int = 0  # number in the default id of the first query
    store: RowStore = field(default_factory=RowStore)
    first_issue: RowIssue | None = None
    _issues: list[tuple[int, RowIssue]] = field(default_factory=list)
    _dropped: dict[str, str] = field(default_factory=dict)  # product id -> origin of its invalid row
    _num_rows: int = 0  # the position of the next one
    _num_queries: int = 0  # dropped ones included: default ids do not depend on them
    _are_pairs: bool = False  # products and queries may be repeated
    _is_merged: bool = False

    def __post_init__(self) -> None:
        self._products = RowWriter(self.store, "products", PRODUCTS)
        self._queries = RowWriter(self.store, "queries", QUERIES)
        self._irrelevant = RowWriter(
            self.store, "irrelevant", "position BIGINT, query_id VARCHAR, origin VARCHAR, reason VARCHAR"
        )

    def add_product(self, origin: str, row: Row, root: PathOrUrl) -> None:
        """Add a row of a table in which each product is one row."""
        self._num_rows += 1
        self._add_product(origin, row, root)

    def add_query(self, origin: str, row: Row, root: PathOrUrl) -> None:
        """Add a row of a table of queries; rows that differ only in their products become one query."""
        self._num_rows += 1
        try:
            self._queries.add(pack_query(self._num_rows, self._parse_query(row, root, origin)))
        except NothingRelevantError as error:
            # not an issue if other rows of this query name relevant products
            self._irrelevant.add((self._num_rows, known_id(row, "query_id"), str(origin), error.reason))
        except RowError as error:
            self._report_query(error, origin, row)

    def add_pair(self, origin: str, product_row: Row, query_row: Row, root: PathOrUrl) -> None:
        """Add a query and its product; rows of the same query id become one query with several products.

        A product of grade 0 is added to the catalog alone. The first row of a repeated product or query is kept, that
        of a product with the images of the other rows that are paths or URLs.
        """
        if not self.add_repeated(origin, product_row, root):
            self._num_queries += 1
            return
        try:
            self._queries.add(pack_query(self._num_rows, self._parse_query(query_row, root, origin)))
        except NothingRelevantError:
            pass
        except RowError as error:
            self._report_query(error, origin, query_row)

    def add_repeated(self, origin: str, row: Row, root: PathOrUrl) -> bool:
        """Add a product that may have been added before; return whether the row is valid."""
        self._num_rows += 1
        self._are_pairs = True
        return self._add_product(origin, row, root)

    def report(self, issue: RowIssue) -> None:
        """Report that the next row is dropped, or after `merge_repeated` that one of them is."""
        if self._is_merged:
            self._report(issue)
        else:
            self._num_rows += 1
            self._issues.append((self._num_rows, issue))

    def merge_repeated(self) -> StoredRows:
        """Report the issues of single rows and repeated ids, and return the valid rows."""
        for writer in (self._products, self._queries, self._irrelevant):
            writer.flush()
        merge_product, merge_queries = (_merge_images, _merge_pair) if self._are_pairs else (_refuse, join_query)
        products = self._fold(self._products.table, "products", unpack_product, pack_product, merge_product)
        queries = self._fold(self._queries.table, "queries", unpack_query, pack_query, merge_queries)
        for _, issue in sorted(self._issues, key=lambda numbered: numbered[0]):
            self._report(issue)
        self._is_merged = True
        return StoredRows(self.store, products, queries)

    def finish(self) -> StoredRows:
        """Report all issues, and return the valid rows.

        Raises:
            ValueError: no product is valid.
        """
        rows = self.merge_repeated()
        if self.store.is_empty(rows.products):
            reason = f"no product is valid; {self.first_issue}" if self.first_issue else "the table has no rows"
            raise ValueError(f"{self.products_name}: {reason}")
        return self.drop_unanswerable(rows)

    def _fold(
        self,
        table: str,
        noun: str,
        unpack: Callable[[Sequence[Any]], Item],
        pack: Callable[[int, Item], Sequence[Any]],
        merge: Callable[[Item, Item], Item],
    ) -> str:
        """Merge the rows of each repeated id into the first of them; one for which `merge` raises is reported."""
        columns, key = (PRODUCTS, "product_id") if noun == "products" else (QUERIES, "query_id")
        repeated = self.store.select(
            "repeated", f"SELECT {key}, min(position) AS first FROM {table} GROUP BY {key} HAVING count(*) > 1"
        )
        changes = RowChanges(self.store, columns)
        rows = f"SELECT t.*, first FROM {table} t JOIN {repeated} USING ({key})"
        for position, group in groupby(self.store.read_sorted(rows, "first, position"), key=lambda row: row[-1]):
            first = merged = None
            for *row, _ in group:
                item = unpack(row)
                if merged is None:
                    first = merged = item
                    continue
                changes.drop(row[0])
                try:
                    merged = merge(merged, item)
                except RowError as error:
                    self._issues.append((row[0], error.at(noun, item.origin, row[1])))
            if merged is not None and merged is not first:
                changes.change(pack(position, merged))
        self.store.drop(repeated)
        return changes.apply(table)

    def drop_unanswerable(self, rows: StoredRows) -> StoredRows:
        """Report the queries that name unknown products, or no relevant one, and return the rows without them."""
        products, queries = rows.products, rows.queries
        irrelevant = f"FROM {self._irrelevant.table} ANTI JOIN {queries} USING (query_id) ORDER BY position"
        for _, query_id, origin, reason in self.store.read(irrelevant):
            self._report(RowError("grade", reason).at("queries", origin, query_id))
        wanted = f"SELECT DISTINCT position, product_id FROM ({named_products(queries)})"
        unknown = self.store.select("unknown", f"{wanted} ANTI JOIN {products} USING (product_id)")
        # 7.0 may be the product 7, or the reverse: the ids of one table were floats
        other = "CASE WHEN ends_with(u.product_id, '.0') THEN left(u.product_id, -2) ELSE u.product_id || '.0' END"
        found = self.store.select(
            "found",
            f"SELECT u.*, p.product_id AS number FROM {unknown} u LEFT JOIN {products} p ON p.product_id = {other}",
        )
        changes = RowChanges(self.store, QUERIES)
        for row, ids in self.store.read_with(queries, found):
            same = {name: number for name, number in ids if number and name.removesuffix(".0").isdecimal()}
            unknown_ids, query = {name for name, _ in ids}, _renumbered(unpack_query(row), same)
            for column, names in (("product_id", query.target_ids), ("shown_product_id", query.reference_ids)):
                missing = next((name for name in names if name in unknown_ids), None)
                if missing is not None:
                    changes.drop(row[0])
                    self._report(self._unknown_product(missing, column).at("queries", query.origin, query.query_id))
                    break
            else:
                changes.change(pack_query(row[0], query))
        self.store.drop(unknown)
        self.store.drop(found)
        return replace(rows, queries=changes.apply(queries))

    def _unknown_product(self, product_id: str, column: str) -> RowError:
        reason = f"product '{product_id}' is not in {self.products_name}"
        if product_id not in self._dropped:
            return RowError(column, reason, IssueType.UNKNOWN_PRODUCT)
        return RowError(column, f"{reason} (invalid: {self._dropped[product_id]})", IssueType.DROPPED_PRODUCT)

    def _add_product(self, origin: str, row: Row, root: PathOrUrl) -> bool:
        try:
            product = parse_product(self._cleaned(row), root, origin, self.metadata)
        except RowError as error:
            product_id = known_id(row, "product_id")
            self._dropped.setdefault(product_id, origin)
            self._issues.append((self._num_rows, error.at("products", origin, product_id)))
            return False
        self._products.add(pack_product(self._num_rows, product))
        return True

    def _parse_query(self, row: Row, root: PathOrUrl, origin: str) -> Query:
        self._num_queries += 1
        number = self.first_query + self._num_queries - 1
        return parse_query(self._cleaned(row), root, origin, number, self.segments)

    def _cleaned(self, row: Row) -> Row:
        return without_html(row) if self.clean_html else row

    def _report_query(self, error: RowError, origin: str, row: Row) -> None:
        self._issues.append((self._num_rows, error.at("queries", origin, known_id(row, "query_id"))))

    def _report(self, issue: RowIssue) -> None:
        self.first_issue = self.first_issue or issue
        self.on_issue(issue)


def _refuse(first: Product, again: Product) -> Product:
    reason = f"'{again.product_id}' is already in {first.origin}"
    raise RowError("product_id", reason, IssueType.DUPLICATE_ID)


def _merge_images(first: Product, again: Product) -> Product:
    # whether images inside several rows are the same is unknown without reading them
    found = [image for image in again.images if isinstance(image, Path | str) or not first.images]
    if set(found) <= set(first.images):
        return first
    return replace(first, images=tuple(dict.fromkeys((*first.images, *found))))


def _merge_pair(first: Query, again: Query) -> Query:
    if first.split != again.split:
        raise RowError("split", f"query '{again.query_id}' is in split '{first.split}' in {first.origin}")
    return merge_query(first, again)


def _renumbered(query: Query, numbers: Mapping[str, str]) -> Query:
    """Return a query with other names of its products, unless two of them would be the same."""
    targets, references = (tuple(numbers.get(i, i) for i in ids) for ids in (query.target_ids, query.reference_ids))
    if len(set(targets)) != len(targets) or len(set(references)) != len(references):
        return query
    weights = {numbers.get(product_id, product_id): weight for product_id, weight in query.product_weights.items()}
    return replace(query, target_ids=targets, reference_ids=references, product_weights=weights)
