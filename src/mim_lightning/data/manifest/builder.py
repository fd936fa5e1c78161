"""A builder of manifests: rows are added one by one and validated against those added before.

An invalid row is reported to `on_issue` and dropped. Products and queries have a table each, or come in pairs (a query
and a product relevant to it), in which either may be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

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
    merge_query,
    parse_product,
    parse_query,
    text_of,
    without_html,
)
from mim_lightning.io.paths import PathOrUrl


@dataclass
class ManifestBuilder:
    """The rows added so far.

    Args:
        products_name: of the table of products, in messages.
        on_issue: is called with the issue of each dropped row.
        segments, metadata, clean_html: see ManifestSource.
    """

    products_name: str
    on_issue: OnIssue
    segments: Sequence[str] = ()
    metadata: Sequence[str] | None = None
    clean_html: bool = False
    first_query: int = 0  # number in the default id of the first query
    products: dict[str, Product] = field(default_factory=dict)
    queries: dict[str, Query] = field(default_factory=dict)
    first_issue: RowIssue | None = None
    _dropped: dict[str, str] = field(default_factory=dict)  # product id -> origin of its invalid row
    _irrelevant: list[tuple[str, RowError, str, Row]] = field(default_factory=list)  # query id, error, origin, row
    _num_queries: int = 0  # dropped ones included: default ids do not depend on them

    def add_product(self, origin: str, row: Row, root: PathOrUrl) -> None:
        """Add a row of a table in which each product is one row."""
        try:
            product = parse_product(self._cleaned(row), root, origin, self.metadata)
            if product.product_id in self.products:
                first = self.products[product.product_id].origin
                reason = f"'{product.product_id}' is already in {first}"
                raise RowError("product_id", reason, IssueType.DUPLICATE_ID)
        except RowError as error:
            self._drop_product(error, origin, row)
        else:
            self.products[product.product_id] = product

    def add_query(self, origin: str, row: Row, root: PathOrUrl) -> None:
        """Add a row of a table of queries; rows that differ only in their products become one query."""
        try:
            query = self._parse_query(row, root, origin)
            first = self.queries.get(query.query_id)
            self.queries[query.query_id] = query if first is None else join_query(first, query)
        except NothingRelevantError as error:
            # not an issue if other rows of this query name relevant products
            self._irrelevant.append((text_of(row, "query_id") or "", error, origin, row))
        except RowError as error:
            self._drop_query(error, origin, row)

    def add_pair(self, origin: str, product_row: Row, query_row: Row, root: PathOrUrl) -> None:
        """Add a query and its product; rows of the same query id become one query with several products.

        A product of grade 0 is added to the catalog alone. The first row of a repeated product or query is kept, that
        of a product with the images of the other rows that are paths or URLs.
        """
        if not self.add_repeated(origin, product_row, root):
            self._num_queries += 1
            return
        try:
            query = self._parse_query(query_row, root, origin)
            first = self.queries.get(query.query_id)
            if first is not None and first.split != query.split:
                raise RowError("split", f"query '{query.query_id}' is in split '{first.split}' in {first.origin}")
        except NothingRelevantError:
            pass
        except RowError as error:
            self._drop_query(error, origin, query_row)
        else:
            self.queries[query.query_id] = query if first is None else merge_query(first, query)

    def add_repeated(self, origin: str, row: Row, root: PathOrUrl) -> bool:
        """Add a product that may have been added before; return whether the row is valid."""
        try:
            product = parse_product(self._cleaned(row), root, origin, self.metadata)
        except RowError as error:
            self._drop_product(error, origin, row)
            return False
        first = self.products.setdefault(product.product_id, product)
        # whether images inside several rows are the same is unknown without reading them
        found = [image for image in product.images if isinstance(image, Path | str) or not first.images]
        if not set(found) <= set(first.images):
            images = tuple(dict.fromkeys((*first.images, *found)))
            self.products[product.product_id] = replace(first, images=images)
        return True

    def drop_unanswerable(self) -> None:
        """Drop the queries that name unknown products, or no relevant one."""
        for query_id, error, origin, row in self._irrelevant:
            if query_id not in self.queries:
                self._drop_query(error, origin, row)
        for query in list(self.queries.values()):
            if not {*query.target_ids, *query.reference_ids} <= self.products.keys():
                query = self.queries[query.query_id] = self._with_whole_numbers(query)
            for column, ids in (("product_id", query.target_ids), ("shown_product_id", query.reference_ids)):
                unknown = next((product_id for product_id in ids if product_id not in self.products), None)
                if unknown is not None:
                    del self.queries[query.query_id]
                    self.report(self._unknown_product(unknown, column).at("queries", query.origin, query.query_id))
                    break

    def _unknown_product(self, product_id: str, column: str) -> RowError:
        reason = f"product '{product_id}' is not in {self.products_name}"
        if product_id not in self._dropped:
            return RowError(column, reason, IssueType.UNKNOWN_PRODUCT)
        return RowError(column, f"{reason} (invalid: {self._dropped[product_id]})", IssueType.DROPPED_PRODUCT)

    def _with_whole_numbers(self, query: Query) -> Query:
        """Return a query whose 7.0 is the product 7, or the reverse: the ids of one table were floats."""

        def known(product_id: str) -> str:
            other = product_id.removesuffix(".0") if product_id.endswith(".0") else f"{product_id}.0"
            is_number = other.removesuffix(".0").isdecimal()
            return other if is_number and product_id not in self.products and other in self.products else product_id

        targets, references = (tuple(map(known, ids)) for ids in (query.target_ids, query.reference_ids))
        is_same = len(set(targets)) == len(targets) and len(set(references)) == len(references)
        weights = {known(product_id): weight for product_id, weight in query.product_weights.items()}
        return (
            replace(query, target_ids=targets, reference_ids=references, product_weights=weights) if is_same else query
        )

    def _parse_query(self, row: Row, root: PathOrUrl, origin: str) -> Query:
        self._num_queries += 1
        number = self.first_query + self._num_queries - 1
        return parse_query(self._cleaned(row), root, origin, number, self.segments)

    def _cleaned(self, row: Row) -> Row:
        return without_html(row) if self.clean_html else row

    def _drop_product(self, error: RowError, origin: str, row: Row) -> None:
        product_id = text_of(row, "product_id") or ""
        self._dropped.setdefault(product_id, origin)
        self.report(error.at("products", origin, product_id))

    def _drop_query(self, error: RowError, origin: str, row: Row) -> None:
        self.report(error.at("queries", origin, text_of(row, "query_id") or ""))

    def report(self, issue: RowIssue) -> None:
        """Report that a row was dropped."""
        self.first_issue = self.first_issue or issue
        self.on_issue(issue)
