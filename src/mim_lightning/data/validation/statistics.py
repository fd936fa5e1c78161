"""Statistics of a manifest, without its images: splits, catalog, categories and text lengths, and what is odd in them.

Without a tower's spec, or with a tokenizer that cannot count, text lengths are in words and have no limit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from mim_lightning.data.manifest.html_text import find_html
from mim_lightning.data.manifest.manifest import Manifest, Product, Query
from mim_lightning.data.validation.findings import Finding
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


def split_statistics(manifest: Manifest) -> tuple[SplitStatistics, ...]:
    """Return the counts of each split, by name."""
    queries: dict[str, list[Query]] = defaultdict(list)
    for query in manifest.queries:
        queries[query.split].append(query)
    splits_of = _queries_by_split(manifest)
    targets = Counter(split for splits in splits_of.values() for split in splits)
    shared = Counter(split for splits in splits_of.values() if len(splits) > 1 for split in splits)
    return tuple(
        SplitStatistics(
            name=name,
            num_queries=len(rows),
            num_with_image=sum(row.image is not None for row in rows),
            num_with_text=sum(row.text is not None for row in rows),
            num_with_both=sum(row.image is not None and row.text is not None for row in rows),
            num_products=targets[name],
            num_shared=shared[name],
        )
        for name, rows in sorted(queries.items())
    )


def catalog_statistics(manifest: Manifest) -> CatalogStatistics:
    """Return the counts of the products table."""
    products = manifest.products.values()
    return CatalogStatistics(
        num_products=len(products),
        num_images=sum(len(product.images) for product in products),
        num_with_image=sum(bool(product.images) for product in products),
        num_with_several=sum(len(product.images) > 1 for product in products),
        num_with_text=sum(product.text is not None for product in products),
        num_targets=len(_queries_by_split(manifest)),
    )


def category_balance(manifest: Manifest) -> CategoryBalance:
    """Return how many products each category has."""
    counts = Counter(product.category for product in manifest.products.values())
    num_without = counts.pop(None, 0)
    named = [(str(name), count) for name, count in counts.items()]
    return CategoryBalance(tuple(sorted(named, key=lambda pair: (-pair[1], pair[0]))), num_without)


def text_lengths(
    manifest: Manifest, specs: Mapping[str, InputSpec], settings: ValidationSettings
) -> tuple[tuple[TextLengths, ...], Iterator[Finding]]:
    """Return the lengths of the texts by tower, and a finding for each text that is truncated."""
    lengths: list[TextLengths] = []
    findings: list[Iterator[Finding]] = []
    declared = chain((row.fields for row in manifest.products.values()), (row.fields for row in manifest.queries))
    for name in (*TEXT_FIELDS, *sorted(set(chain.from_iterable(declared)))):
        table: Sequence[Product | Query]
        table = list(manifest.products.values()) if side_of(name) == PRODUCT else manifest.queries
        rows = [(row, text) for row in table if (text := _text(row, name)) is not None]
        if rows:
            spec = cast("TextSpec | None", specs.get(name))
            counts = _count([text for _, text in rows], spec)
            limit = spec.max_length if spec is not None and spec.count is not None else None
            lengths.append(
                TextLengths(
                    tower=name,
                    unit="words" if limit is None else "tokens",
                    num_texts=len(counts),
                    median=round(float(np.median(counts))),
                    percentile_95=round(float(np.percentile(counts, 95))),
                    longest=int(counts.max()),
                    limit=limit,
                    num_over=0 if limit is None else int((counts > limit).sum()),
                )
            )
            if limit is not None:
                findings.append(_find_truncated(name, [row for row, _ in rows], counts, limit, settings))
    return tuple(lengths), chain.from_iterable(findings)


def _find_truncated(
    name: str, rows: Sequence[Product | Query], counts: npt.NDArray[np.int64], limit: int, settings: ValidationSettings
) -> Iterator[Finding]:
    for idx in np.flatnonzero(counts > limit).tolist():
        row, reason = rows[idx], f"{counts[idx]:,} tokens, of which the first {limit:,} are read"
        own = "text" if isinstance(row, Query) else "title" if row.text == row.title else "description"
        yield _finding("text_over_limit", row, own if name in TEXT_FIELDS else name, reason, settings)


def find_in_rows(manifest: Manifest, settings: ValidationSettings) -> Iterator[Finding]:
    """Yield products in two splits, and products without image or text."""
    splits_of = _queries_by_split(manifest)
    for product in manifest.products.values():
        splits = splits_of.get(product.product_id, Counter())
        if len(splits) > 1:
            queries = ", ".join(f"{name} ({format_count(count, 'query')})" for name, count in sorted(splits.items()))
            yield _finding("product_in_two_splits", product, "product_id", f"a target in {queries}", settings)
        if not product.images:
            yield _finding("product_without_image", product, "image", "empty", settings)
        if product.text is None:
            yield _finding("product_without_text", product, "title", "empty, and no description", settings)


def find_html_texts(manifest: Manifest, settings: ValidationSettings) -> Iterator[Finding]:
    """Yield the products and queries with HTML tags or entities in a text; the first text of each row."""
    rows: Iterator[Product | Query] = chain(manifest.products.values(), manifest.queries)
    for row in rows:
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


def _queries_by_split(manifest: Manifest) -> dict[str, Counter[str]]:
    """Return, by target product, its number of queries in each split."""
    splits: dict[str, Counter[str]] = defaultdict(Counter)
    for query in manifest.queries:
        for product_id in query.target_ids:
            splits[product_id][query.split] += 1
    return splits


def _text(row: Product | Query, name: str) -> str | None:
    return row.text if name in TEXT_FIELDS else row.fields.get(name)


def _count(texts: Sequence[str], spec: TextSpec | None) -> npt.NDArray[np.int64]:
    if spec is None or spec.count is None:
        return np.array([len(text.split()) for text in texts], dtype=np.int64)
    remaining, counts = iter(texts), []
    while batch := list(islice(remaining, TOKENIZER_BATCH_SIZE)):
        counts += spec.count(batch)
    return np.array(counts, dtype=np.int64)
