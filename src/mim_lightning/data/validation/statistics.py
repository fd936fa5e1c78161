"""Statistics of a manifest, without its images: splits, catalog, categories and text lengths, and what is odd in them.

Without a tower's spec, or with a tokenizer that cannot count, text lengths are in words and have no limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING, cast

import numpy as np

from mim_lightning.data.manifest.html_text import find_html
from mim_lightning.data.manifest.rows import Product, Query
from mim_lightning.data.manifest.stored_rows import StoredRows
from mim_lightning.data.validation.findings import Finding, Findings
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.display.numbers import format_count
from mim_lightning.display.text import plain
from mim_lightning.fields import PRODUCT, TEXT_FIELDS, side_of

if TYPE_CHECKING:  # imports torch, which the processes that inspect images do without
    from mim_lightning.types import InputSpec, TextSpec

MAX_SHOWN = 80  # characters of a text with HTML
TOKENIZER_BATCH_SIZE = 1_000  # texts


@dataclass(frozen=True)
class SplitStatistics:
    """Counts of one split."""

    name: str
    num_queries: int
    num_with_image: int
    num_with_text: int
    num_with_both: int
    num_products: int  # targets of its queries
    num_shared: int  # of these, targets of another split's queries too


@dataclass(frozen=True)
class CatalogStatistics:
    """Counts of the products table."""

    num_products: int
    num_images: int
    num_with_image: int
    num_with_several: int  # images
    num_with_text: int
    num_targets: int  # of queries of any split


@dataclass(frozen=True)
class CategoryBalance:
    """How the products are distributed over categories."""

    counts: tuple[tuple[str, int], ...]  # largest first
    num_without: int

    @property
    def num_with_half(self) -> int:
        """How many of the largest categories have half of the categorized products."""
        total = sum(count for _, count in self.counts)
        return 1 + sum(2 * part < total for part in accumulate(count for _, count in self.counts)) if total else 0


@dataclass(frozen=True)
class TextLengths:
    """How long the texts of one tower are."""

    tower: str
    unit: str  # "tokens" or "words"
    num_texts: int
    median: int
    percentile_95: int
    longest: int
    limit: int | None  # tokens that the encoder reads; None: unknown
    num_over: int  # texts that are truncated


def split_statistics(rows: StoredRows) -> tuple[SplitStatistics, ...]:
    """Return the counts of each split, by name."""
    targets = f"SELECT DISTINCT split, unnest(targets) AS product_id FROM {rows.queries}"
    shared = rows.store.run(
        f"""WITH targets AS ({targets}),
        counts AS (SELECT product_id, count(*) AS num_splits FROM targets GROUP BY product_id)
        SELECT split, count(*), count(*) FILTER (num_splits > 1)
        FROM targets JOIN counts USING (product_id) GROUP BY split"""
    )
    num_products = {name: counts for name, *counts in shared}
    found = rows.store.run(
        f"""SELECT split, count(*), count(image), count(*) FILTER (has_text), count(image) FILTER (has_text)
        FROM {rows.queries} GROUP BY split"""
    )
    return tuple(SplitStatistics(*row, *num_products.get(row[0], (0, 0))) for row in sorted(found))


def catalog_statistics(rows: StoredRows) -> CatalogStatistics:
    """Return the counts of the products table."""
    ((num_products, num_images, num_with_image, num_with_several, num_with_text),) = rows.store.run(
        f"""SELECT count(*), ifnull(sum(len(images)), 0)::BIGINT, count(*) FILTER (len(images) > 0),
        count(*) FILTER (len(images) > 1), count(*) FILTER (has_text) FROM {rows.products}"""
    )
    num_targets = rows.store.number(f"SELECT count(*) FROM (SELECT DISTINCT unnest(targets) FROM {rows.queries})")
    return CatalogStatistics(
        num_products, num_images, num_with_image, num_with_several, num_with_text, num_targets=num_targets
    )


def category_balance(rows: StoredRows) -> CategoryBalance:
    """Return how many products each category has."""
    counts = dict(rows.store.run(f"SELECT category, count(*) FROM {rows.products} GROUP BY category"))
    num_without = counts.pop(None, 0)
    return CategoryBalance(tuple(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))), num_without)


def text_lengths(
    rows: StoredRows, specs: Mapping[str, InputSpec], settings: ValidationSettings
) -> tuple[tuple[TextLengths, ...], Findings]:
    """Return the lengths of the texts by tower, and a finding for each text that is truncated."""
    lengths: list[TextLengths] = []
    truncated = Findings()
    declared = {
        name
        for table in (rows.products, rows.queries)
        for (name,) in rows.store.run(f"SELECT DISTINCT unnest(fields) FROM {table}")
    }
    for name in (*TEXT_FIELDS, *sorted(declared)):
        read: Callable[..., Iterator[Product] | Iterator[Query]]
        read = rows.read_products if side_of(name) == PRODUCT else rows.read_queries
        texts = read("has_text") if name in TEXT_FIELDS else read("list_contains(fields, ?)", [name])
        spec = cast("TextSpec | None", specs.get(name))
        limit = spec.max_length if spec is not None and spec.count is not None else None
        counts: Counter[int] = Counter()  # texts of each length
        while batch := cast("list[Product | Query]", list(islice(texts, TOKENIZER_BATCH_SIZE))):
            batch_lengths = _count([_text(row, name) or "" for row in batch], spec)
            counts.update(batch_lengths)
            if limit is not None:
                truncated.add(_find_truncated(name, batch, batch_lengths, limit, settings))
        if counts:
            lengths.append(
                TextLengths(
                    tower=name,
                    unit="words" if limit is None else "tokens",
                    num_texts=counts.total(),
                    median=round(_quantile(counts, 0.5)),
                    percentile_95=round(_quantile(counts, 0.95)),
                    longest=max(counts),
                    limit=limit,
                    num_over=0 if limit is None else sum(num for length, num in counts.items() if length > limit),
                )
            )
    return tuple(lengths), truncated


def _quantile(counts: Counter[int], fraction: float) -> float:
    """Return what np.quantile returns of all lengths, of which `counts` has the number of each."""
    values = np.array(sorted(counts))
    ends = np.cumsum([counts[value] for value in values.tolist()])
    place = fraction * (ends[-1] - 1)
    low, high = (values[np.searchsorted(ends, np.array([np.floor(place), np.ceil(place)]), side="right")]).tolist()
    return float(np.quantile(np.array([low, high]), place - np.floor(place)))


def _find_truncated(
    name: str, rows: Sequence[Product | Query], lengths: Sequence[int], limit: int, settings: ValidationSettings
) -> Iterator[Finding]:
    for row, length in zip(rows, lengths, strict=True):
        if length > limit:
            reason = f"{length:,} tokens, of which the first {limit:,} are read"
            own = "text" if isinstance(row, Query) else "title" if row.text == row.title else "description"
            yield _finding("text_over_limit", row, own if name in TEXT_FIELDS else name, reason, settings)


def find_in_rows(rows: StoredRows, settings: ValidationSettings) -> Iterator[Finding]:
    """Yield products in two splits, and products without image or text."""
    counts = rows.store.select(
        "counts",
        f"""SELECT product_id, split, count(*) AS num_queries
        FROM (SELECT split, unnest(targets) AS product_id FROM {rows.queries}) GROUP BY product_id, split""",
    )
    # counts alone: DuckDB cannot spill the state of list(), which would be one for every product
    shared = f"""FROM {counts} SEMI JOIN
        (SELECT product_id FROM {counts} GROUP BY product_id HAVING count(*) > 1) USING (product_id)"""
    found = rows.store.read(
        f"""SELECT position, origin, product_id, len(images) > 0, has_text, split, num_queries
        FROM {rows.products} LEFT JOIN ({shared}) USING (product_id)
        WHERE split IS NOT NULL OR len(images) = 0 OR NOT has_text ORDER BY position, split"""
    )
    for _, group in groupby(found, key=itemgetter(0)):
        rows_of_product = [*group]
        _, origin, row_id, has_image, has_text, *_ = rows_of_product[0]
        splits = [(split, num) for *_, split, num in rows_of_product if split is not None]
        queries = ", ".join(f"{name} ({format_count(num, 'query')})" for name, num in splits)
        for kind, is_found, column, reason in (
            ("product_in_two_splits", splits, "product_id", f"a target in {queries}"),
            ("product_without_image", not has_image, "image", "empty"),
            ("product_without_text", not has_text, "title", "empty, and no description"),
        ):
            if is_found:
                yield Finding(kind, "products", origin, row_id, column, reason, settings.drops(kind))
    rows.store.run(f"DROP TABLE {counts}")


def find_html_texts(rows: StoredRows, settings: ValidationSettings) -> Iterator[Finding]:
    """Yield the products and queries with HTML tags or entities in a text; the first text of each row."""
    marked: Iterator[Product | Query] = chain(rows.read_products("has_markup"), rows.read_queries("has_markup"))
    for row in marked:
        texts: dict[str, str | None] = {"text": row.text}
        if isinstance(row, Product):
            texts = {"title": row.title, "description": row.text, "category": row.category}
        for column, text in {**texts, **row.fields}.items():
            if text and (found := find_html(text)):
                reason = f"{plain(found, MAX_SHOWN)} in '{plain(text, MAX_SHOWN)}'"
                yield _finding("html_in_text", row, column, reason, settings)
                break


def _finding(kind: str, row: Product | Query, column: str, reason: str, settings: ValidationSettings) -> Finding:
    table, row_id = ("queries", row.query_id) if isinstance(row, Query) else ("products", row.product_id)
    return Finding(kind, table, row.origin, row_id, column, reason, settings.drops(kind))


def _text(row: Product | Query, name: str) -> str | None:
    return row.text if name in TEXT_FIELDS else row.fields.get(name)


def _count(texts: Sequence[str], spec: TextSpec | None) -> Sequence[int]:
    return [len(text.split()) for text in texts] if spec is None or spec.count is None else spec.count(texts)
