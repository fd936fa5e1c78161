"""Composed rows of variants, against all pairs of products by the definition."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.data.manifest.composed_rows import compose_variants, parse_variants
from mim_lightning.data.manifest.manifest import Manifest, ManifestSource
from mim_lightning.data.manifest.rows import Product, Query
from mim_lightning.data.preparation.preparation import prepare_shards, validate_variants
from mim_lightning.data.preparation.prepared import ShardSettings
from tests.data.conftest import jpeg, write_csv

SPLITS = ("train", "val")
NAMES = ("style", "color", "size")


def product(product_id: str, *values: object, images: tuple[str, ...] = ()) -> Product:
    metadata: dict[str, Any] = {name: value for name, value in zip(NAMES, values, strict=False) if value is not None}
    shown = tuple(Path(name) for name in images or (f"{product_id}.jpg",))
    return Product(product_id, shown, product_id, product_id, "shirts", metadata, f"products.csv, row {product_id}")


def query(product_id: str, split: str = "train", reference: str | None = None) -> Query:
    ids, references = (product_id,), (reference or product_id,)
    name = f"{split}-{product_id}-{reference}"
    return Query(name, split, Path(f"{name}.jpg"), None, ids, (1,), references, {}, "queries.csv, row 1")


SHIRTS = [
    product("r1", "shirt", "red", 40),
    product("r2", "shirt", "red", 41),
    product("b1", "shirt", "blue", 40),
    product("g1", "shirt", "green", 40),
    product("g2", "shirt", "green", 41),
    product("m1", "mug", "red", 40),
    product("m2", "mug", "blue", 40),
    product("alone", "cap", "red", 40),
    product("bare", "shirt", None, 40),
]


def compose(products: list[Product], queries: list[Query] | None = None, seed: int = 0, **given: Any) -> list[Query]:
    settings = parse_variants({"columns": "style:color:size", "rows_per_product": 100, **given})
    assert settings is not None
    manifest = Manifest({item.product_id: item for item in products}, queries or [], "products.csv", "queries.csv")
    composed = compose_variants(manifest, settings, SPLITS, seed).manifest
    assert list(composed.queries)[: len(queries or [])] == (queries or [])
    return list(composed.queries)[len(queries or []) :]


def changes_of(rows: list[Query]) -> set[tuple[str, tuple[str, ...]]]:
    return {(row.reference_ids[0], row.target_ids) for row in rows}


@pytest.mark.parametrize("columns", ["style:color", "style:size", "style:color:size"])
def test_answers_are_the_variants_that_differ_in_one_named_attribute_alone(columns: str) -> None:
    style, *attributes = columns.split(":")
    complete = [item for item in SHIRTS if {style, *attributes} <= item.metadata.keys()]
    expected: dict[tuple[str, str, Any], list[str]] = {}
    for one in complete:
        for other in complete:
            differing = [name for name in attributes if one.metadata[name] != other.metadata[name]]
            if one.metadata[style] == other.metadata[style] and len(differing) == 1:
                change = one.product_id, differing[0], other.metadata[differing[0]]
                expected.setdefault(change, []).append(other.product_id)
    rows = compose(SHIRTS, columns=columns, templates=["{attribute} {value}, not {former_value}"])
    assert len(rows) == len(expected) > 3
    assert {(row.reference_ids[0], row.text): list(row.target_ids) for row in rows} == {
        (reference, f"{name} {value}, not {dict(complete_by_id(complete)[reference])[name]}"): targets
        for (reference, name, value), targets in expected.items()
    }
    assert {row.split for row in rows} == {"train"} and {row.segments["kind"] for row in rows} == {"composed"}
    assert len({row.query_id for row in rows}) == len(rows)


def complete_by_id(products: list[Product]) -> dict[str, Any]:
    return {item.product_id: item.metadata for item in products}


def test_rows_are_the_same_again_and_limited_by_product() -> None:
    rows = compose(SHIRTS, rows_per_product=1)
    assert rows == compose(SHIRTS, rows_per_product=1) != compose(SHIRTS, rows_per_product=1, seed=1)
    assert [row.reference_ids[0] for row in rows] == ["r1", "r2", "b1", "g1", "g2", "m1", "m2"]
    assert {row.text for row in compose(SHIRTS, phrases={"blue": "navy", "40": ["small", "tiny"]})} & {"navy", "small"}


def test_photos_are_those_of_queries_that_show_the_product_then_its_own() -> None:
    products = [product("m1", "mug", "red", 40, images=("a.jpg", "b.jpg")), *SHIRTS[6:7]]
    queries = [query("m2"), query("m1", reference="m2"), query("m1", "val")]

    def photos(given: str | None) -> dict[str, set[str]]:
        rows = [row for seed in range(5) for row in compose(products, queries, seed, photos=given)]
        return {name: {str(row.image) for row in rows if row.reference_ids == (name,)} for name in ("m1", "m2")}

    shown = {"train-m2-None.jpg", "train-m1-m2.jpg"}
    assert photos(None) == {"m1": {"a.jpg", "b.jpg"}, "m2": shown}
    assert photos("queries") == {"m1": set(), "m2": shown}
    assert photos("products") == {"m1": {"a.jpg", "b.jpg"}, "m2": {"m2.jpg"}}


def test_a_style_stays_on_its_side_of_the_splits() -> None:
    # shirts are trained on, but for g1; mugs are evaluated alone, caps are in no query
    caps = [product("c1", "cap", "red", 40), product("c2", "cap", "blue", 40)]
    queries = [query("r1"), query("b1", "val"), query("b1"), query("g1", "val"), query("m1", "val")]
    rows = compose([*SHIRTS[:7], *caps], queries)
    assert {row.split for row in rows} == {"train"}
    named = {name for row in rows for name in (*row.reference_ids, *row.target_ids)}
    assert named == {"r1", "r2", "b1", "g2", "c1", "c2"}
    held_out = compose([*SHIRTS[:7], *caps], queries, val_fraction=0.999999)
    assert {row.split for row in held_out if row.reference_ids[0] in ("c1", "c2")} == {"val"}
    assert changes_of([row for row in held_out if row.split == "train"]) == changes_of(
        [row for row in rows if row.reference_ids[0] not in ("c1", "c2")]
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("style", r"data\.compose=style: give two columns of the products, <style>:<attribute>, as style_id:color"),
        ("style:style", r"data\.compose=style:style: give two columns"),
        ({"column": "a:b"}, r"no config key 'data\.compose\.column'; there are \['columns', 'templates'"),
        ({"columns": "a:b", "templates": ["in blue"]}, r"data\.compose\.templates: 'in blue' must have \{value\}"),
        ({"columns": "a:b", "templates": ["{value} {x}"]}, r"templates: '\{value\} \{x\}' must have \{value\}"),
        (
            {"columns": "a:b", "templates": {"c": ["{value}"]}},
            r"data\.compose\.templates\.c: is none of the attributes",
        ),
        ({"columns": "a:b", "phrases": {"x": []}}, r"data\.compose\.phrases\.x=\[\]: give a text or a list of texts"),
        ({"columns": "a:b", "templates": ["{value!q}"]}, r"templates: '\{value!q\}' must have \{value\}"),
        ({"columns": "a:b", "templates": ["{value:d}"]}, r"templates: '\{value:d\}' must have \{value\}"),
        (
            {"columns": "a:b", "phrases": ["navy"]},
            r"data\.compose\.phrases=\['navy'\]: give a text or a list of texts by",
        ),
        ({"columns": "a:b", "phrases": {"x": "a {y}"}}, r"data\.compose\.phrases\.x: 'a \{y\}' may have in braces"),
        ({"columns": "a:b", "rows_per_product": 0}, r"data\.compose\.rows_per_product=0: give a whole number from 1"),
        ({"columns": "a:b", "photos": "all"}, r"data\.compose\.photos=all: give queries, products or null"),
        ({"columns": "a:b", "val_fraction": 1}, r"data\.compose\.val_fraction=1: give a fraction of the styles"),
    ],
)
def test_wrong_settings_are_named(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_variants(given)


@pytest.mark.parametrize(
    ("columns", "products", "message"),
    [
        ("style:colour", SHIRTS, r"no product has a value in a column 'colour', .*did you mean 'color'\?"),
        ("style:fit", SHIRTS, r"no product has a value in a column 'fit', .*they have category, color, size, style"),
        ("style:color", SHIRTS[-2:], r"no style has two products to train on that differ in color alone"),
        ("style:color:size", [SHIRTS[-1], product("x", None, "red", 1)], r"no product has a value in each of style"),
        (
            "style:color",
            [replace(item, images=()) for item in SHIRTS],
            r"no variant has a photo; see data\.compose",
        ),
    ],
)
def test_nothing_to_compose_is_said_in_one_line(columns: str, products: list[Product], message: str) -> None:
    with pytest.raises(ValueError, match=f"data\\.compose={columns}: {message}"):
        compose(products, columns=columns)


def test_a_column_that_is_no_style_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mim_lightning.data.manifest.composed_rows.MAX_STYLE", 4)
    with pytest.raises(ValueError, match=r"5 products have the style 'shirt', at most 4 may; name"):
        compose(SHIRTS)


def test_a_catalog_without_a_query_log_can_be_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for number, (style, color) in enumerate((s, c) for s in ("cup", "pot", "cap") for c in ("red", "blue")):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
        rows.append({"product_id": number, "image": f"{number}.jpg", "title": style, "style": style, "color": color})
    source = ManifestSource(str(write_csv(tmp_path / "products.csv", rows)), None)
    variants = parse_variants({"columns": "style:color", "val_fraction": 0.5})
    make: Callable[..., Any] = lambda **more: prepare_shards(  # noqa: E731
        source, tmp_path / "shards", ShardSettings(), num_workers=1, **more
    )
    prepared = make(variants=variants)
    sets = {split: list(prepared.queries(split).all_facts()) for split in prepared.splits()}
    assert {split: len(facts) for split, facts in sets.items()} == {"train": 2, "val": 4}
    assert all(facts["product_id"] == facts["asked_ids"][0] != facts["shown_ids"][0] for facts in sets["train"])
    assert "6 rows composed of 6 products in 3 styles" in capsys.readouterr().out
    assert json.loads((tmp_path / "shards" / "settings.json").read_text())["settings"]["compose"] == {
        "columns": ["style", "color"],
        "val_fraction": 0.5,
    }
    assert make(variants=variants).splits() == ["train", "val"]
    with pytest.raises(ValueError, match="was prepared with compose="):
        make()
    validate_variants(prepared, variants)
    validate_variants(prepared, None)
    with pytest.raises(
        ValueError, match=r"data\.compose=style:size: .*shards was prepared with compose=\{.*'style', 'color'"
    ):
        validate_variants(prepared, parse_variants("style:size"))
