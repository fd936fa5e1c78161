"""The synthetic world keeps its promises: same bytes, one true answer, look-alikes across categories."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image

from mim_lightning.data.synthetic import draw_contact_sheet, write_synthetic_world
from mim_lightning.data.synthetic.catalog import MAX_PRODUCTS, build_products, build_queries
from mim_lightning.data.synthetic.item import COLOURS, MARKS, Look, draw_item
from mim_lightning.data.synthetic.patterns import PATTERNS
from mim_lightning.data.synthetic.shapes import SILHOUETTES
from mim_lightning.data.synthetic.wording import MOTIFS

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


def test_same_bytes_whatever_the_number_of_processes(folder: Path, tmp_path: Path) -> None:
    write_synthetic_world(tmp_path, **SMALL, num_processes=2)
    assert read_bytes(tmp_path) == read_bytes(folder)


def test_another_seed_is_another_world(folder: Path, tmp_path: Path) -> None:
    products_path, _ = write_synthetic_world(tmp_path, 2, 1, 1, image_size=32, seed=1)
    assert read_rows(products_path) != read_rows(folder / "products.csv")[:2]


def test_every_picture_exists_and_has_the_asked_size(folder: Path) -> None:
    rows = read_rows(folder / "products.csv") + read_rows(folder / "queries.csv")
    assert len({row["image"] for row in rows}) == len(rows) == 24 * (1 + 4 + 2)
    for row in rows:
        with Image.open(folder / row["image"]) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (48, 48))
            picture.load()


def test_both_kinds_in_both_splits_and_every_product_in_train(folder: Path) -> None:
    queries = read_rows(folder / "queries.csv")
    assert {(row["split"], row["kind"]) for row in queries} == {
        (split, kind) for split in ("train", "val") for kind in ("same", "change")
    }
    shown = {row["shown_product_id"] for row in queries if row["split"] == "train"}
    assert shown == {row["product_id"] for row in read_rows(folder / "products.csv")}


def test_change_share_is_the_share_of_changes() -> None:
    products = build_products(240, seed=0)
    for change_share in (0.0, 0.4, 1.0):
        queries = build_queries(products, "train", 10, change_share, seed=0)
        num_changes = sum(query.kind == "change" for query in queries)
        assert num_changes == pytest.approx(change_share * len(queries), abs=1)


@pytest.mark.parametrize("num_products", [240, 1500])
def test_a_change_has_one_true_answer(num_products: int) -> None:
    products = {product.product_id: product for product in build_products(num_products, seed=3)}
    catalogue = [tuple(getattr(product, name) for name in ATTRIBUTES) for product in products.values()]
    for query in build_queries(list(products.values()), "val", 3, 0.5, seed=3):
        shown, asked = products[query.shown_product_id], products[query.product_id]
        changed = [name for name in ATTRIBUTES if getattr(shown, name) != getattr(asked, name)]
        assert len(changed) == (query.kind == "change")
        assert set(changed) <= {"colour", "pattern"}
        assert catalogue.count(tuple(getattr(asked, name) for name in ATTRIBUTES)) == 1


def test_the_text_names_the_new_value() -> None:
    products = {product.product_id: product for product in build_products(80, seed=0)}
    queries = build_queries(list(products.values()), "train", 10, 1.0, seed=0)
    named = 0
    for query in queries:
        asked = products[query.product_id]
        words = {asked.colour, asked.pattern, MOTIFS[asked.pattern]}
        named += any(word in query.text for word in words)
    assert named > 0.9 * len(queries)  # the rest is mistyped


@pytest.mark.parametrize("num_products", [240, MAX_PRODUCTS])
def test_no_two_products_differ_in_size_alone(num_products: int) -> None:
    products = build_products(num_products, seed=0)
    assert len({product.look for product in products}) == num_products


def test_colours_and_patterns_go_across_categories() -> None:
    categories = defaultdict(set)
    for product in build_products(240, seed=0):
        categories[product.pattern].add(product.category)
        categories[product.colour].add(product.category)
    assert set(categories) == {*PATTERNS, *COLOURS} and set(PATTERNS) == set(MOTIFS)
    assert min(len(found) for found in categories.values()) >= 4


def test_silhouettes_and_marks_can_be_told_apart() -> None:
    looks = [
        Look(category, shape, "red", "plain", "Brask") for category in SILHOUETTES for shape in SILHOUETTES[category]
    ]
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
def test_bad_arguments_are_named(name: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=name):
        write_synthetic_world(tmp_path, **{name: value})


def test_contact_sheet(folder: Path, tmp_path: Path) -> None:
    sheet = draw_contact_sheet(folder, products=6)
    assert sheet.mode == "RGB" and 600 < sheet.width < 2000 and 300 < sheet.height < 1200
    with pytest.raises(ValueError, match=r"products\.csv"):
        draw_contact_sheet(tmp_path)
