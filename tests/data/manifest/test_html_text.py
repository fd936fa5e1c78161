"""Tags and entities are found and cleaned; what only looks like them stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from mim_lightning.data.manifest.html_text import clean_html, find_html
from mim_lightning.data.manifest.manifest import ManifestSource
from tests.data.validation.broken import check, jpeg, write_csv, write_shop


@pytest.mark.parametrize(
    ("text", "found", "clean"),
    [
        ("Lumatech&trade; lamp", "&trade;", "Lumatech™ lamp"),
        ("<b>Red</b> mug", "<b>", "Red mug"),
        ("Red<br/>mug<BR>large", "<br/>", "Red mug large"),
        ("<p class='x'>A</p><p>B</p>", "<p class='x'>", "A B"),
        ("salt &amp;amp; pepper", "&amp;", "salt & pepper"),
        ("&amp;lt;b&amp;gt;Bold&amp;lt;/b&amp;gt;", "&amp;", "Bold"),
        ("5 &lt; 6 &#233;&#xE9;&nbsp;x", "&lt;", "5 < 6 éé x"),
        ("<!-- note -->Mug<script>alert(1)</script>", "<!-- note -->", "Mug"),
        ("<img src=x onerror=alert(1)>Mug", "<img src=x onerror=alert(1)>", "Mug"),
        ("<a href='https://shop.example'>Mug</a>", "<a href='https://shop.example'>", "Mug"),
        *((text, "", text) for text in ("R&D", "a < b and c > d", "AT&T; T-shirt", "x <3 y", "<blue> mug", "", "&;")),
        *((text, "", text) for text in ("&copy 2020", "<biscuit>", "< b >", "b<a", "a & b; c", "  two  blanks")),
    ],
)
def test_tags_and_entities(text: str, found: str, clean: str) -> None:
    assert find_html(text) == found
    assert clean_html(text) == clean
    assert not find_html(clean_html(text))


def test_unclosed_tags_take_no_time() -> None:
    for part in ("<!--", "<script>", "<b ", "&amp", "<", "&#1", "</p", "<script", "&lt;!--"):
        clean_html(part * 30_000)


def test_html_is_reported_and_one_key_cleans_it(tmp_path: Path) -> None:
    products = [
        {"product_id": "1", "image": "p.jpg", "title": "Lumatech&trade;", "description": "<b>bright</b>"},
        {"product_id": "2", "title": "R&D lamp", "description": "a < b<br>c", "category": "lamps"},
        {"product_id": "3", "title": "plain", "category": "cups &amp; mugs"},
    ]
    queries = [{"query_id": "q", "text": "l&auml;mp", "image": "q.jpg", "product_id": "1"}]
    manifest, faults = write_shop(tmp_path, {"p.jpg": jpeg(1), "q.jpg": jpeg(2)}, products, queries)
    report = check(manifest, faults)
    assert {(f.table, f.row_id, f.column, f.is_error) for f in report.of_kind("html_in_text")} == {
        ("products", "1", "title", False),
        ("products", "2", "description", False),
        ("products", "3", "category", False),
        ("queries", "q", "text", False),
    }
    assert check(manifest, faults, treat_as_invalid=["html_in_text"]).num_invalid_rows("products") == 3

    tables = str(tmp_path / "products.csv"), str(tmp_path / "queries.csv")
    source, cleaning = ManifestSource(*tables), ManifestSource(*tables, clean_html=True)
    assert "clean_html" not in source.describe() and cleaning.describe() == source.describe() | {"clean_html": True}
    cleaned = cleaning.read(tmp_path / "work")
    assert [product.text for product in cleaned.products.values()] == [
        "Lumatech™. bright",
        "R&D lamp. a < b c",
        "plain",
    ]
    assert cleaned.products["3"].category == "cups & mugs" and cleaned.queries[0].text == "lämp"
    assert not check(cleaned, faults).of_kind("html_in_text")


def test_metadata_is_cleaned_as_well(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "p.csv", [{"product_id": "1", "image": "", "title": "x", "brand": "A&amp;B"}])
    (product,) = ManifestSource(str(path), None, clean_html=True).read(tmp_path).products.values()
    assert product.metadata["brand"] == "A&B"
