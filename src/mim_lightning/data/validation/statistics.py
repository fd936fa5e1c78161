"""What the tables say without their pictures: counts by split, products in two splits, category balance.

A Manifest comes in, facts and findings go out; `check_manifest` calls it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from mim_lightning.data.manifest.manifest import Manifest, Product, Query
from mim_lightning.data.validation.findings import Finding
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.display.numbers import format_count


@dataclass(frozen=True)
class SplitFacts:
    """What one split holds."""

    name: str
    num_queries: int
    num_with_image: int
    num_with_text: int
    num_with_both: int
    num_products: int  # that answer its queries
    num_shared: int  # of these, that answer queries of another split too


@dataclass(frozen=True)
class CatalogueFacts:
    """What the products table holds."""

    num_products: int
    num_pictures: int
    num_with_image: int
    num_with_several: int  # pictures
    num_with_text: int
    num_asked: int  # that answer a query of any split


@dataclass(frozen=True)
class CategoryBalance:
    """How the products spread over categories."""

    counts: tuple[tuple[str, int], ...]  # largest first
    num_without: int

    @property
    def num_holding_half(self) -> int:
        """How many of the largest categories hold half of the products that have one."""
        total = sum(count for _, count in self.counts)
        return 1 + sum(2 * held < total for held in accumulate(count for _, count in self.counts)) if total else 0


def count_splits(manifest: Manifest) -> tuple[SplitFacts, ...]:
    """Return what each split holds, by name."""
    queries: dict[str, list[Query]] = defaultdict(list)
    for query in manifest.queries:
        queries[query.split].append(query)
    splits_of = _queries_by_split(manifest)
    asked = Counter(split for splits in splits_of.values() for split in splits)
    shared = Counter(split for splits in splits_of.values() if len(splits) > 1 for split in splits)
    return tuple(
        SplitFacts(
            name=name,
            num_queries=len(rows),
            num_with_image=sum(row.image is not None for row in rows),
            num_with_text=sum(row.text is not None for row in rows),
            num_with_both=sum(row.image is not None and row.text is not None for row in rows),
            num_products=asked[name],
            num_shared=shared[name],
        )
        for name, rows in sorted(queries.items())
    )


def count_catalogue(manifest: Manifest) -> CatalogueFacts:
    """Return what the products table holds."""
    products = manifest.products.values()
    return CatalogueFacts(
        num_products=len(products),
        num_pictures=sum(len(product.images) for product in products),
        num_with_image=sum(bool(product.images) for product in products),
        num_with_several=sum(len(product.images) > 1 for product in products),
        num_with_text=sum(product.text is not None for product in products),
        num_asked=len(_queries_by_split(manifest)),
    )


def measure_balance(manifest: Manifest) -> CategoryBalance:
    """Return how many products each category has."""
    counts = Counter(product.category for product in manifest.products.values())
    num_without = counts.pop(None, 0)
    named = [(str(name), count) for name, count in counts.items()]
    return CategoryBalance(tuple(sorted(named, key=lambda pair: (-pair[1], pair[0]))), num_without)


def find_in_rows(manifest: Manifest, settings: ValidationSettings) -> Iterator[Finding]:
    """Yield products in two splits, and products without image or text."""
    splits_of = _queries_by_split(manifest)
    for product in manifest.products.values():
        splits = splits_of.get(product.product_id, Counter())
        if len(splits) > 1:
            told = ", ".join(f"{name} ({format_count(count, 'query')})" for name, count in sorted(splits.items()))
            yield _finding("product_in_two_splits", product, "product_id", f"answers {told}", settings)
        if not product.images:
            yield _finding("product_without_image", product, "image", "empty", settings)
        if product.text is None:
            yield _finding("product_without_text", product, "title", "empty, and no description", settings)


def _finding(kind: str, product: Product, column: str, reason: str, settings: ValidationSettings) -> Finding:
    drops = "row" if settings.is_bad(kind) else ""
    return Finding(kind, "products", product.origin, product.product_id, column, reason, drops)


def _queries_by_split(manifest: Manifest) -> dict[str, Counter[str]]:
    """Return, by product that is asked for, how many queries of each split it answers."""
    splits: dict[str, Counter[str]] = defaultdict(Counter)
    for query in manifest.queries:
        for product_id in query.asked_ids:
            splits[product_id][query.split] += 1
    return splits
