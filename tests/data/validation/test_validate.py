"""A broken shop: every invalid row is reported with row and column, and exactly the valid rows are kept."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.data.manifest.manifest import Manifest
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.validation.validation_report import (
    ValidationReport,
    drop_invalid,
    raise_if_invalid,
    write_findings,
    write_skipped,
)
from tests.data.validation.broken import check, jpeg, one_coloured, png_header, summarize, write_shop

PICTURES = {
    "good.jpg": jpeg(1),
    "good2.jpg": jpeg(2),
    "cut.jpg": jpeg(3)[:4000],
    "text.jpg": b"<html>no such picture</html>",
    "bomb.png": png_header(50_000, 50_000),
    "grey.jpg": one_coloured(),
    **{f"q{number}.jpg": jpeg(10 + number) for number in range(10)},
}
PRODUCTS = [
    {"product_id": "a", "image": "good.jpg", "title": "Mug", "category": "mugs"},  # row 2
    {"product_id": "b", "image": "good2.jpg|cut.jpg", "title": "Cup", "category": "mugs"},
    {"product_id": "c", "image": "bomb.png", "title": "Poster", "category": "art"},
    {"product_id": "d", "image": "text.jpg|gone.jpg", "title": "Pot"},
    {"product_id": "a", "image": "good.jpg", "title": "Mug again"},  # row 6
    {"product_id": "e", "image": "grey.jpg", "title": ""},
    {"product_id": "f", "image": "", "title": "Gift card"},
    {"product_id": "", "image": "good.jpg", "title": "No id"},
]
QUERIES = [
    {"query_id": "q0", "image": "q0.jpg", "product_id": "a"},  # row 2
    {"query_id": "q1", "split": "val", "image": "q1.jpg", "product_id": "a"},
    {"query_id": "q2", "image": "cut.jpg", "product_id": "b"},
    {"query_id": "q3", "image": "q3.jpg", "product_id": "c"},
    {"query_id": "q4", "image": "q4.jpg", "product_id": "d|c"},  # row 6
    {"query_id": "q5", "image": "q5.jpg", "product_id": "c|b"},
    {"query_id": "q6", "image": "q6.jpg", "product_id": "nobody"},
    {"query_id": "q7", "text": "a gift", "product_id": "f"},
    {"query_id": "q0", "image": "q8.jpg", "product_id": "a"},  # row 10
    {"query_id": "q9", "product_id": "a"},
]


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Manifest, list[RowIssue]]:
    return write_shop(tmp_path / "shop", PICTURES, PRODUCTS, QUERIES)


def small(folder: Path, num_good: int, num_bad: int) -> ValidationReport:
    """Return the report on a shop of one product that answers good and bad queries."""
    pictures = {"p.jpg": jpeg(0), "text.jpg": b"text", **{f"{n}.jpg": jpeg(n + 1) for n in range(num_good)}}
    queries = [{"query_id": f"good{n}", "image": f"{n}.jpg", "product_id": "p"} for n in range(num_good)]
    queries += [{"query_id": f"bad{n}", "image": "text.jpg", "product_id": "p"} for n in range(num_bad)]
    return check(*write_shop(folder, pictures, [{"product_id": "p", "image": "p.jpg", "title": "P"}], queries))


def under(report: ValidationReport, **settings: Any) -> ValidationReport:
    return replace(report, settings=ValidationSettings(**settings))


def test_every_issue_has_table_row_and_id(shop: tuple[Manifest, list[RowIssue]]) -> None:
    assert summarize(check(*shop)) == {
        ("truncated_image", "products", "3", "b", "image"),
        ("huge_image", "products", "4", "c", "row"),
        ("unreadable_image", "products", "5", "d", "row"),
        ("duplicate_id", "products", "6", "a", "row"),
        ("near_empty_image", "products", "7", "e", ""),
        ("product_without_text", "products", "7", "e", ""),
        ("product_without_image", "products", "8", "f", ""),
        ("faulty_row", "products", "9", "", "row"),
        ("product_in_two_splits", "products", "2", "a", ""),
        ("truncated_image", "queries", "4", "q2", "row"),
        ("answer_left_out", "queries", "5", "q3", "row"),
        ("answer_left_out", "queries", "6", "q4", "row"),
        ("unknown_product", "queries", "8", "q6", "row"),
        ("duplicate_id", "queries", "10", "q0", "row"),
        ("faulty_row", "queries", "11", "q9", "row"),
    }


def test_issues_have_column_and_reason(shop: tuple[Manifest, list[RowIssue]]) -> None:
    report = check(*shop)
    folder = shop[0].products["a"].images[0].parent  # type: ignore[union-attr]
    lines = {(f.table, report.row_of(f), f.kind): str(f) for f in report.findings}
    products, queries = folder / "products.csv", folder / "queries.csv"
    assert lines["products", "6", "duplicate_id"] == (
        f"{products}, row 6, column 'product_id': 'a' is already in {products}, row 2"
    )
    assert lines["products", "4", "huge_image"].startswith(
        f"{products}, row 4, column 'image': {folder / 'bomb.png'}: not a readable image (Image size (2500000000 "
    )
    assert lines["queries", "5", "answer_left_out"].startswith(
        f"{queries}, row 5, column 'product_id': its product 'c' is invalid: {products}, row 4, column 'image': "
    )
    both_gone = lines["queries", "6", "answer_left_out"]
    assert "all its 2 products are invalid" in both_gone and "text.jpg: not a readable" in both_gone  # what came first
    assert lines["products", "2", "product_in_two_splits"].endswith("a target in train (1 query), val (1 query)")
    both = [f.reason for f in report.findings if f.row_id == "d"]
    assert both == [
        f"{folder / 'text.jpg'}: not a readable image (of no known format)",
        f"{folder / 'gone.jpg'}: no such file",
    ]


def test_queries_of_left_out_products_are_left_out(tmp_path: Path) -> None:
    products = [{"product_id": "a", "title": "A"}, {"product_id": "b"}]
    queries = [
        {"query_id": "q", "text": "a", "product_id": "a"},
        {"query_id": "r", "text": "b", "product_id": "b"},
        {"query_id": "s", "text": "c", "product_id": "c"},
    ]
    report = check(*write_shop(tmp_path, {}, products, queries))
    assert {(kind, row_id) for kind, _, _, row_id, drops in summarize(report) if drops} == {
        ("faulty_row", "b"), ("answer_left_out", "r"), ("unknown_product", "s"),
    }  # fmt: skip


def test_an_image_that_the_source_left_out_is_no_row(shop: tuple[Manifest, list[RowIssue]]) -> None:
    manifest, faults = shop
    product = manifest.products["a"]
    report = check(manifest, [*faults, RowIssue("products", product.origin, "image", "a", "no picture")])
    (finding,) = [one for one in report.errors if one.reason == "no picture"]
    assert finding.drops == "image" and report.num_invalid_rows("products") == 4
    assert report.num_rows["products"] == len(PRODUCTS) and "a" in drop_invalid(manifest, report).products


def test_exactly_the_valid_rows_are_kept(shop: tuple[Manifest, list[RowIssue]]) -> None:
    manifest, faults = shop
    kept = drop_invalid(manifest, check(manifest, faults))
    assert list(kept.products) == ["a", "b", "e", "f"]
    assert [str(image).rsplit("/", 1)[-1] for image in kept.products["b"].images] == ["good2.jpg"]
    assert kept.products["a"] == manifest.products["a"] and kept.products["a"].text == "Mug"
    assert [query.query_id for query in kept.queries] == ["q0", "q1", "q5", "q7"]
    q5 = kept.queries[2]
    assert (q5.target_ids, q5.target_grades, q5.reference_ids) == (("b",), (1,), ("b",))
    assert kept.products_path == manifest.products_path


def test_a_valid_shop_is_unchanged(tmp_path: Path) -> None:
    pictures = {"a.jpg": jpeg(1), "q.jpg": jpeg(2)}
    products = [{"product_id": "a", "image": "a.jpg", "title": "Mug"}]
    manifest, faults = write_shop(
        tmp_path, pictures, products, [{"query_id": "q", "image": "q.jpg", "product_id": "a"}]
    )
    report = check(manifest, faults)
    assert report.findings == () and len(report.errors) == 0
    raise_if_invalid(report)
    assert drop_invalid(manifest, report) == manifest


def test_rows_are_counted_once_and_with_those_the_source_left_out(shop: tuple[Manifest, list[RowIssue]]) -> None:
    report = check(*shop)
    assert report.num_rows == {"products": len(PRODUCTS), "queries": len(QUERIES)}
    # c, d (two faults), the second a, and the one without id; b loses an image alone
    assert report.num_invalid_rows("products") == 4 and report.num_invalid_rows("queries") == 6
    assert len(report.errors) == 12 and len(report.errors) == 12
    assert sum(report.counts.values()) == len(report.findings) == 16


def test_skipped_rows_are_listed_with_their_reason(shop: tuple[Manifest, list[RowIssue]], tmp_path: Path) -> None:
    report = check(*shop)
    write_skipped(report, tmp_path / "new" / "skipped.csv")
    with (tmp_path / "new" / "skipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["table", "row", "id", "column", "reason"]
    assert {(row["table"], row["row"], row["id"]) for row in rows} == {
        (f.table, report.row_of(f), f.row_id) for f in report.findings if f.is_error
    }
    (picture,) = [row for row in rows if row["id"] == "b"]
    assert picture["reason"].startswith("only this image is dropped: ") and "cut.jpg" in picture["reason"]
    write_findings(report, tmp_path / "findings.csv")
    with (tmp_path / "findings.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 16 and {row["severity"] for row in found} == {"error", "warning"}
    assert {row["kind"] for row in found if row["severity"] == "warning"} == {
        "near_empty_image", "product_without_text", "product_without_image", "product_in_two_splits",
    }  # fmt: skip


def test_with_fail_a_corrupt_sample_stops_in_one_line(shop: tuple[Manifest, list[RowIssue]]) -> None:
    report = check(*shop)
    with pytest.raises(ValueError, match="the validation found 12 errors") as error:
        raise_if_invalid(report)
    text = str(error.value)
    assert "4 rows of products, 6 rows of queries" in text and str(report.errors[0]) in text
    assert "data.validation.on_invalid=drop data.validation.max_invalid=6 (" in text and "\n" not in text
    raise_if_invalid(under(report, on_invalid="drop", max_invalid=6))


def test_a_corrupt_image_stops_with_fail_and_is_skipped_with_skip(tmp_path: Path) -> None:
    pictures = {"a.jpg": jpeg(1), "text.jpg": b"text"}
    report = check(*write_shop(
        tmp_path, pictures, [{"product_id": "a", "image": "a.jpg|text.jpg", "title": "A"}],
        [{"query_id": "q", "text": "a", "product_id": "a"}],
    ))  # fmt: skip
    with pytest.raises(ValueError, match=r"1 error in single images of products, .*mend it, or .*at most .*=1% of"):
        raise_if_invalid(report)
    raise_if_invalid(under(report, on_invalid="drop", max_invalid=0))


@pytest.mark.parametrize(
    ("max_invalid", "passes"), [("1%", False), ("19.9%", False), ("20%", True), (1, False), (2, True), ("0%", False)]
)
def test_skipping_stops_beyond_the_limit(tmp_path: Path, max_invalid: str | int, passes: bool) -> None:
    report = under(small(tmp_path, num_good=8, num_bad=2), on_invalid="drop", max_invalid=max_invalid)
    if passes:
        raise_if_invalid(report)
        return
    with pytest.raises(
        ValueError, match=r"2 of 10 rows of the queries table are invalid \(20.0 %\), which exceeds data"
    ) as e:
        raise_if_invalid(report)
    assert f"data.validation.max_invalid={max_invalid}" in str(e.value) and "row 10, column 'image'" in str(e.value)
    assert str(e.value).endswith("mend them, or give data.validation.max_invalid=2") and "\n" not in str(e.value)


def test_each_table_has_its_own_ceiling(shop: tuple[Manifest, list[RowIssue]]) -> None:
    report = check(*shop)  # half of the products, 6 of 10 queries
    with pytest.raises(ValueError, match="of the queries table"):
        raise_if_invalid(under(report, on_invalid="drop", max_invalid="50%"))
    with pytest.raises(ValueError, match="of the products table"):
        raise_if_invalid(under(report, on_invalid="drop", max_invalid="49%"))
    raise_if_invalid(under(report, on_invalid="drop", max_invalid="60%"))


def test_warnings_can_be_treated_as_errors(shop: tuple[Manifest, list[RowIssue]]) -> None:
    manifest, faults = shop
    report = check(manifest, faults, treat_as_invalid=["near_empty_image", "product_without_image"])
    assert {
        ("near_empty_image", "products", "7", "e", "row"),
        ("product_without_image", "products", "8", "f", "row"),
    } <= summarize(report)
    kept = drop_invalid(manifest, report)
    assert list(kept.products) == ["a", "b"] and [q.query_id for q in kept.queries] == ["q0", "q1", "q5"]


def test_the_blank_fraction_of_an_image_is_a_setting(tmp_path: Path) -> None:
    manifest, faults = write_shop(
        tmp_path, {"a.jpg": one_coloured()}, [{"product_id": "a", "image": "a.jpg", "title": "A"}],
        [{"query_id": "q", "text": "a", "product_id": "a"}],
    )  # fmt: skip
    assert check(manifest, faults, blank_image_fraction=1.0).counts == {"near_empty_image": 1}
    pictures = {"a.jpg": jpeg(1)}
    manifest, faults = write_shop(tmp_path / "b", pictures, [{"product_id": "a", "image": "a.jpg", "title": "A"}],
        [{"query_id": "q", "text": "a", "product_id": "a"}])  # fmt: skip
    assert check(manifest, faults, blank_image_fraction=0.5).counts == {}


def test_rows_of_a_table_in_several_files_are_named_with_their_file(tmp_path: Path) -> None:
    report = small(tmp_path, num_good=1, num_bad=1)
    (finding,) = report.errors
    assert report.place_of(finding) == "queries, row 3 (bad0), column 'image'"
    parts = replace(finding, origin="s3://shop/queries/part-7.parquet, row 12", column="")
    split = replace(report, paths={"queries": "s3://shop/queries"})
    assert split.row_of(parts) == "part-7.parquet, row 12"
    assert split.place_of(parts) == "queries, part-7.parquet, row 12 (bad0)"
