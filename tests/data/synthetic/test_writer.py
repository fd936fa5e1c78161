"""The synthetic shop: same bytes from the same arguments, one target a query, look-alikes across categories."""

from __future__ import annotations

import csv
import runpy
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image

from mim_lightning.data.synthetic import write_synthetic_world
from mim_lightning.data.synthetic.catalog import MAX_PRODUCTS, PATTERN_PHRASES, build_products, build_queries
from mim_lightning.data.synthetic.item import COLORS, MARKS, Look, draw_item
from mim_lightning.data.synthetic.patterns import PATTERNS
from mim_lightning.data.synthetic.shapes import SHAPES

ATTRIBUTES = ("category", "shape", "colour", "pattern", "size", "brand")
SMALL = {"num_products": 24, "train_queries_per_product": 4, "val_queries_per_product": 2, "image_size": 48}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_synthetic_world(folder, **SMALL, num_processes=1)
    return folder


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_number_of_processes_changes_no_byte(folder: Path, tmp_path: Path) -> None:
    write_synthetic_world(tmp_path, **SMALL, num_processes=2)
    assert read_bytes(tmp_path) == read_bytes(folder)


def test_another_seed_makes_another_shop(folder: Path, tmp_path: Path) -> None:
    products_path, _ = write_synthetic_world(tmp_path, 2, 1, 1, image_size=32, seed=1)
    assert read_rows(products_path) != read_rows(folder / "products.csv")[:2]


def test_every_image_exists_in_the_given_size(folder: Path) -> None:
    rows = read_rows(folder / "products.csv") + read_rows(folder / "queries.csv")
    assert len({row["image"] for row in rows}) == len(rows) == 24 * (1 + 4 + 2)
    for row in rows:
        with Image.open(folder / row["image"]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))
            image.load()


def test_both_kinds_are_in_both_splits_and_every_product_in_train(folder: Path) -> None:
    queries = read_rows(folder / "queries.csv")
    assert {(row["split"], row["kind"]) for row in queries} == {
        (split, kind) for split in ("train", "val") for kind in ("same", "change")
    }
    shown = {row["shown_product_id"] for row in queries if row["split"] == "train"}
    assert shown == {row["product_id"] for row in read_rows(folder / "products.csv")}


def test_change_share_is_the_fraction_of_changes() -> None:
    products = build_products(240, seed=0)
    for change_share in (0.0, 0.4, 1.0):
        queries = build_queries(products, "train", 10, change_share, seed=0)
        num_changes = sum(query.kind == "change" for query in queries)
        assert num_changes == pytest.approx(change_share * len(queries), abs=1)


@pytest.mark.parametrize("num_products", [240, 1500])
def test_a_change_has_one_target(num_products: int) -> None:
    products = {product.product_id: product for product in build_products(num_products, seed=3)}
    catalog = [tuple(getattr(product, name) for name in ATTRIBUTES) for product in products.values()]
    for query in build_queries(list(products.values()), "val", 3, 0.5, seed=3):
        shown, target = products[query.shown_product_id], products[query.product_id]
        changed = [name for name in ATTRIBUTES if getattr(shown, name) != getattr(target, name)]
        assert len(changed) == (query.kind == "change")
        assert set(changed) <= {"colour", "pattern"}
        assert catalog.count(tuple(getattr(target, name) for name in ATTRIBUTES)) == 1


def test_the_text_names_the_new_value() -> None:
    products = {product.product_id: product for product in build_products(80, seed=0)}
    queries = build_queries(list(products.values()), "train", 10, 1.0, seed=0)
    named = 0
    for query in queries:
        target = products[query.product_id]
        words = {target.colour, target.pattern, PATTERN_PHRASES[target.pattern]}
        named += any(word in query.text for word in words)
    assert named > 0.9 * len(queries)  # the rest is mistyped


@pytest.mark.parametrize("num_products", [240, MAX_PRODUCTS])
def test_no_two_products_differ_in_size_alone(num_products: int) -> None:
    products = build_products(num_products, seed=0)
    assert len({product.look for product in products}) == num_products


def test_colors_and_patterns_are_shared_by_categories() -> None:
    categories = defaultdict(set)
    for product in build_products(240, seed=0):
        categories[product.pattern].add(product.category)
        categories[product.colour].add(product.category)
    assert set(categories) == {*PATTERNS, *COLORS} and set(PATTERNS) == set(PATTERN_PHRASES)
    assert min(len(found) for found in categories.values()) >= 4


def test_shapes_and_marks_differ() -> None:
    looks = [Look(category, shape, "red", "plain", "Brask") for category in SHAPES for shape in SHAPES[category]]
    looks += [Look("bag", "tote", "red", "plain", brand) for brand in MARKS if brand != "Brask"]
    assert len({draw_item(look, 48).tobytes() for look in looks}) == len(looks)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_products", 1),
        ("num_products", MAX_PRODUCTS + 1),
        ("train_queries_per_product", 0),
        ("val_queries_per_product", 0),
        ("image_size", 8),
        ("change_share", 1.5),
        ("num_processes", 0),
    ],
)
def test_invalid_arguments_are_named(name: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=name):
        write_synthetic_world(tmp_path, **{name: value})


def test_the_contact_sheet_of_the_readme(folder: Path) -> None:
    script = runpy.run_path(str(Path(__file__).parents[3] / "docs" / "make_contact_sheet.py"))
    sheet = script["draw_contact_sheet"](folder, num_products=6)
    assert sheet.mode == "RGB" and 600 < sheet.width < 2000 and 300 < sheet.height < 1200
