"""Counts by split and category, on a table small enough to count by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from mim_lightning.data.validation.statistics import CatalogStatistics, CategoryBalance, SplitStatistics
from tests.data.validation.broken import check, jpeg, write_shop

PRODUCTS = [
    {"product_id": "a", "image": "1.jpg|2.jpg", "title": "A", "category": "mugs"},
    {"product_id": "b", "image": "1.jpg", "title": "", "category": "mugs"},
    {"product_id": "c", "image": "", "title": "C", "category": "cups"},
    {"product_id": "d", "image": "2.jpg", "title": "D"},
]
QUERIES = [
    {"query_id": "1", "image": "3.jpg", "product_id": "a"},
    {"query_id": "2", "image": "4.jpg", "text": "in blue", "product_id": "a|b"},
    {"query_id": "3", "text": "a cup", "product_id": "c"},
    {"query_id": "4", "split": "val", "image": "3.jpg", "product_id": "b"},
    {"query_id": "5", "split": "val", "image": "5.jpg", "product_id": "b"},
]


def test_counts(tmp_path: Path) -> None:
    pictures = {f"{number}.jpg": jpeg(number) for number in range(1, 6)}
    report = check(*write_shop(tmp_path, pictures, PRODUCTS, QUERIES))
    assert report.splits == (
        SplitStatistics("train", 3, num_with_image=2, num_with_text=2, num_with_both=1, num_products=3, num_shared=1),
        SplitStatistics("val", 2, num_with_image=2, num_with_text=0, num_with_both=0, num_products=1, num_shared=1),
    )
    assert report.catalog == CatalogStatistics(
        num_products=4, num_images=4, num_with_image=3, num_with_several=1, num_with_text=3, num_targets=3
    )
    assert report.categories == CategoryBalance((("mugs", 2), ("cups", 1)), num_without=1)
    assert report.images.num_images == 5 and report.images.num_bytes == sum(map(len, pictures.values()))
    sides = (report.images.shortest_side, report.images.median_side, report.images.longest_side)
    assert sides == (200, 200, 200)
    assert report.counts == {
        "product_in_two_splits": 1, "product_without_image": 1, "product_without_text": 1, "image_in_two_splits": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "half"), [([], 0), ([7], 1), ([5, 5], 1), ([4, 3, 3], 2), ([9, 1, 1], 1), ([1, 1, 1, 1, 1], 3)]
)
def test_how_many_categories_hold_half(counts: list[int], half: int) -> None:
    named = tuple((str(number), count) for number, count in enumerate(counts))
    assert CategoryBalance(named, 0).num_with_half == half
