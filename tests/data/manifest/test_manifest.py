"""Three table formats give one manifest, and every error is one line that names file, row and column."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from mim_lightning.data.images.reader import TableCell
from mim_lightning.data.manifest import formats
from mim_lightning.data.manifest.content_hash import table_id
from mim_lightning.data.manifest.manifest import Manifest, ManifestSource, read_manifest
from mim_lightning.data.manifest.rows import RowIssue
from tests.data.conftest import PRODUCTS, QUERIES, write_csv


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def listed(rows: list[dict[str, Any]], *columns: str) -> list[dict[str, Any]]:
    """Return the rows with real lists in place of `a|b` cells, and null in place of empty text."""
    return [
        {key: value.split("|") if key in columns and value else value or None for key, value in row.items()}
        for row in rows
    ]


WRITERS: dict[str, Callable[..., Path]] = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}


def read(folder: Path, kind: str, products: Any = PRODUCTS, queries: Any = QUERIES, **options: Any) -> Manifest:
    write = WRITERS[kind]
    return read_manifest(
        write(folder / f"products.{kind}", products), write(folder / f"queries.{kind}", queries), **options
    )


def content(manifest: Manifest) -> tuple[list[Any], list[Any]]:
    def facts(row: Any) -> dict[str, Any]:
        return {key: value for key, value in vars(row).items() if key != "origin"}

    return [facts(product) for product in manifest.products.values()], [facts(q) for q in manifest.queries]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_three_formats_one_manifest(tmp_path: Path, kind: str) -> None:
    manifest = read(tmp_path, kind)
    products, queries = content(manifest)
    assert list(manifest.products) == ["0012", "7", "x-9"]
    assert products[0] == {
        "product_id": "0012",
        "images": (tmp_path / "a.jpg", tmp_path / "b.jpg"),
        "text": "Red mug. 300 ml",
        "title": "Red mug",
        "category": "mugs",
        "metadata": {},
        "fields": {},
    }
    facts = {"text": "Gift card", "title": "Gift card", "category": None, "metadata": {}, "fields": {}}
    assert products[2] == {"product_id": "x-9", "images": (), **facts}
    assert [query["target_ids"] for query in queries] == [("0012",), ("7", "0012"), ("x-9",), ("7",)]
    assert [query["image"] for query in queries] == [
        tmp_path / "q0.jpg",
        tmp_path / "q1.jpg",
        None,
        tmp_path / "q3.jpg",
    ]
    assert [query["text"] for query in queries] == [None, "but blue", "a gift", None]
    assert [query.query_id for query in manifest.split("train")] == ["q0", "q1", "q2"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_list_cells(tmp_path: Path, kind: str) -> None:
    products, queries = listed(PRODUCTS, "image"), listed(QUERIES, "product_id")
    assert content(read(tmp_path, kind, products, queries)) == content(read(tmp_path, "csv"))


def test_numbers_and_nulls_in_cells(tmp_path: Path) -> None:
    products = [{"product_id": 0, "image": [None, "a.jpg"], "title": float("nan")}]
    manifest = read(tmp_path, "jsonl", products, [{"split": "train", "image": "q.jpg", "product_id": 0}])
    assert manifest.products["0"].images == (tmp_path / "a.jpg",)
    assert manifest.products["0"].text is None
    assert manifest.queries[0].target_ids == ("0",)


def test_shown_ids_default_to_asked(tmp_path: Path) -> None:
    queries = [QUERIES[0] | {"shown_product_id": "7"}, QUERIES[1] | {"shown_product_id": ""}]
    manifest = read(tmp_path, "csv", queries=queries)
    assert [query.reference_ids for query in manifest.queries] == [("7",), ("7", "0012")]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_grades_are_aligned_with_their_products(tmp_path: Path, kind: str) -> None:
    rows = [
        {**QUERIES[1], "grade": "1|3"},
        {**QUERIES[0], "grade": " "},
        {**QUERIES[1], "query_id": "x", "grade": "0|2"},
    ]
    if kind != "csv":
        rows = listed(rows, "product_id", "grade")
    both, plain, one = read(tmp_path, kind, queries=rows).queries
    assert dict(zip(both.target_ids, both.target_grades, strict=True)) == {"7": 1, "0012": 3}
    assert plain.target_grades == (1,)
    assert one.target_ids == ("0012",) and one.target_grades == (2,) and one.reference_ids == ("0012",)


@pytest.mark.parametrize(("cell", "grades"), [(2.0, (2,)), (float("nan"), (1,)), (None, (1,))])
def test_grades_that_came_as_floats(tmp_path: Path, cell: float | None, grades: tuple[int, ...]) -> None:
    (query,) = read(tmp_path, "parquet", queries=[{**QUERIES[0], "grade": cell}]).queries
    assert query.target_grades == grades


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_weights_of_rows(tmp_path: Path, kind: str) -> None:
    weights = ["2.5", "", "1", ""] if kind == "csv" else [2.5, None, 1, None]
    rows = [row | {"weight": weight} for row, weight in zip(QUERIES, weights, strict=True)]
    assert [query.weight for query in read(tmp_path, kind, queries=rows).queries] == [2.5, 1, 1, 1]
    assert [query.weight for query in read(tmp_path, kind).queries] == [1, 1, 1, 1]


def test_segments_keep_further_columns(tmp_path: Path) -> None:
    rows = [row | {"device": "phone" if number else ""} for number, row in enumerate(QUERIES)]
    queries = read(tmp_path, "csv", queries=rows, segments=["device"]).queries
    assert [query.segments["device"] for query in queries] == ["none", "phone", "phone", "phone"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_kind_is_a_segment_by_itself(tmp_path: Path, kind: str) -> None:
    rows = [row | {"kind": "tone" if number else ""} for number, row in enumerate(QUERIES)]
    queries = read(tmp_path, kind, queries=rows).queries
    assert [query.segments for query in queries] == [{}, {"kind": "tone"}, {"kind": "tone"}, {"kind": "tone"}]
    assert not any(query.segments for query in read(tmp_path, kind).queries)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_further_columns_of_products_are_kept(tmp_path: Path, kind: str) -> None:
    price = str if kind == "csv" else float
    rows = [
        row | {"price": price(number + 0.5), "brand": "Acme" if number else ""} for number, row in enumerate(PRODUCTS)
    ]
    first, second, *_ = read(tmp_path, kind, products=rows).products.values()
    assert first.metadata == {"price": price(0.5)}
    assert second.metadata == {"price": price(1.5), "brand": "Acme"}
    second = list(read(tmp_path, kind, products=rows, metadata=["brand"]).products.values())[1]
    assert second.metadata == {"brand": "Acme"}
    with pytest.raises(ValueError, match=r"products.*: missing column 'colour', named by data.source.metadata"):
        read(tmp_path, kind, products=rows, metadata=["colour"])


def test_a_catalog_without_queries(tmp_path: Path) -> None:
    read(tmp_path, "csv")
    source = ManifestSource(str(tmp_path / "products.csv"), None)
    manifest = source.read(tmp_path)
    assert manifest.queries == [] and len(manifest.products) == len(PRODUCTS)
    assert source.describe()["queries"] is None


def test_column_mapping(tmp_path: Path) -> None:
    products = [{"sku": "1", "title": "Mug"}]
    queries = [{"fold": "train", "photo": "q.jpg", "sku": "1"}]
    columns = {
        "products": {"product_id": "sku", "image": None},
        "queries": {"split": "fold", "image": "photo", "product_id": "sku"},
    }
    manifest = read(tmp_path, "csv", products, queries, columns=columns, image_root=Path("/pictures"))
    assert manifest.products["1"].images == ()
    assert manifest.queries[0].image == Path("/pictures/q.jpg")
    assert manifest.queries[0].query_id == "query-000000000"


def test_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    read(tmp_path, "jsonl")
    for path in tmp_path.iterdir():
        path.write_text("\ufeff" + path.read_text().replace("\n", "\n\n"), encoding="utf-8")
    manifest = read_manifest(tmp_path / "products.jsonl", tmp_path / "queries.jsonl")
    assert content(manifest) == content(read(tmp_path, "csv"))
    assert manifest.queries[1].origin.endswith("queries.jsonl, row 3")


def test_source_describes_its_tables(tmp_path: Path) -> None:
    manifest = read(tmp_path, "csv")
    source = ManifestSource(str(manifest.products_path), str(manifest.queries_path))
    before = source.describe()
    assert content(source.read(tmp_path)) == content(manifest)
    assert source.describe() == before
    write_csv(manifest.queries_path, QUERIES[:3])
    assert source.describe() != before


def replaced(rows: list[dict[str, Any]], row: int, **cells: Any) -> list[dict[str, Any]]:
    return [{**cells_before, **(cells if i == row else {})} for i, cells_before in enumerate(rows)]


FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "empty product id": (
        {"products": replaced(PRODUCTS, 1, product_id=" ")},
        ["products.csv, row 3", "column 'product_id'", "empty"],
    ),
    "product twice": (
        {"products": replaced(PRODUCTS, 2, product_id="7")},
        ["products.csv, row 4", "column 'product_id'", "'7'", "products.csv, row 3"],
    ),
    "nothing of a product": (
        {"products": replaced(PRODUCTS, 2, title="")},
        ["products.csv, row 4", "'x-9'", "neither image nor title"],
    ),
    "query twice": (
        {"queries": replaced(QUERIES, 3, query_id="q1")},
        ["queries.csv, row 5", "column 'query_id'", "'q1'", "queries.csv, row 3"],
    ),
    "unknown product": (
        {"queries": replaced(QUERIES, 1, product_id="7|12")},
        ["queries.csv, row 3", "column 'product_id'", "'12'", "products.csv"],
    ),
    "unknown shown product": (
        {"queries": replaced([row | {"shown_product_id": ""} for row in QUERIES], 0, shown_product_id="99")},
        ["queries.csv, row 2", "column 'shown_product_id'", "'99'"],
    ),
    "no product": (
        {"queries": replaced(QUERIES, 0, product_id="")},
        ["queries.csv, row 2", "column 'product_id'", "empty"],
    ),
    "no split": ({"queries": replaced(QUERIES, 2, split="")}, ["queries.csv, row 4", "column 'split'", "empty"]),
    "split no folder": ({"queries": replaced(QUERIES, 2, split="../x")}, ["queries.csv, row 4", "column 'split'"]),
    "empty query": (
        {"queries": replaced(QUERIES, 2, text="")},
        ["queries.csv, row 4", "neither image nor text"],
    ),
    "two images": (
        {"queries": replaced(QUERIES, 0, image="a.jpg|b.jpg")},
        ["queries.csv, row 2", "column 'image'", "one image"],
    ),
    "required column": (
        {"queries": [{key: row[key] for key in row if key != "split"} for row in QUERIES]},
        ["queries.csv: missing column 'split'", "data.source.columns.queries.split=", "'query_id'"],
    ),
    "mapped column": (
        {"columns": {"products": {"category": "department"}}},
        ["products.csv: missing column 'department'", "data.source.columns.products.category="],
    ),
    "fewer grades than products": (
        {"queries": replaced([row | {"grade": ""} for row in QUERIES], 1, grade="2")},
        ["queries.csv, row 3", "column 'grade'", "'2'", "each of 2 products"],
    ),
    "a grade that is no number": (
        {"queries": replaced([row | {"grade": ""} for row in QUERIES], 0, grade="E")},
        ["queries.csv, row 2", "column 'grade'", "'E'", "whole number"],
    ),
    "nothing relevant": (
        {"queries": replaced([row | {"grade": ""} for row in QUERIES], 0, grade="0")},
        ["queries.csv, row 2", "column 'grade'", "no product of the query is relevant"],
    ),
    "missing segment column": (
        {"segments": ["device"]},
        ["queries.csv: missing column 'device'"],
    ),
    "a weight that is no number": (
        {"queries": replaced([row | {"weight": ""} for row in QUERIES], 0, weight="much")},
        ["queries.csv, row 2", "column 'weight'", "'much'", "above 0"],
    ),
    "a weight of nothing": (
        {"queries": replaced([row | {"weight": ""} for row in QUERIES], 3, weight="0")},
        ["queries.csv, row 5", "column 'weight'", "'0'", "above 0"],
    ),
    "misspelt key": (
        {"columns": {"queries": {"product": "sku"}}},
        ["data.source.columns.queries", "no column 'product'", "did you mean product_id?"],
    ),
    "misspelt table": (
        {"columns": {"product": {}}},
        ["data.source.columns", "no table 'product'", "did you mean products?"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_errors_name_table_row_and_column(tmp_path: Path, fault: str) -> None:
    options, words = FAULTS[fault]
    assert_one_line(lambda: read(tmp_path, "csv", **options), words)


def test_row_is_the_editors_line(tmp_path: Path) -> None:
    products = replaced(PRODUCTS, 0, description="two\nlines")
    products[2]["title"] = ""
    assert_one_line(lambda: read(tmp_path, "csv", products), ["products.csv, row 5"])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("queries.csv", b"split,image,product_id\ntrain,a.jpg\n", ["queries.csv, row 2", "cells"]),
        ("queries.csv", b"split,image,product_id\ntrain,a,b,7\n", ["queries.csv, row 2", "cells"]),
        ("queries.csv", "split,image,product_id\ntrain,é.jpg,7\n".encode("latin-1"), ["queries.csv, row 2", "UTF-8"]),
        ("queries.csv", "split,image,product_id,é\n".encode("latin-1"), ["queries.csv: not UTF-8"]),
        ("queries.csv", b"split,image,product_id,image\n", ["queries.csv: 2 columns are called 'image'"]),
        ("queries.csv", b"split,image,product_id\na\rb,c,d\n", ["queries.csv"]),
        (
            "queries.jsonl",
            b'{"split": "train", "image": "a", "product_id": "7"}\n{"split":\n',
            ["row 2", "not JSON"],
        ),
        ("queries.jsonl", b'{"split": "train", "image": {"url": "a"}, "product_id": "7"}\n', ["row 1, column 'image'"]),
        ("queries.jsonl", b'{"split": "train", "image": "\\ud83d", "product_id": "7"}\n', ["row 1", "surrogates"]),
        ("queries.jsonl", b"[1, 2]\n", ["queries.jsonl, row 1", "object"]),
        ("queries.jsonl", b"\xff\xfe{}\n", ["queries.jsonl", "utf-16"]),
        ("queries.parquet", b"PAR1 is not enough", ["queries.parquet", "Parquet"]),
        ("queries.xlsx", b"", ["queries.xlsx", ".csv, .parquet or .jsonl"]),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, text: bytes, words: list[str]) -> None:
    products_path = write_csv(tmp_path / "products.csv", PRODUCTS)
    (tmp_path / name).write_bytes(text)
    assert_one_line(lambda: read_manifest(products_path, tmp_path / name), words)


def test_missing_file_and_empty_tables(tmp_path: Path) -> None:
    products_path = write_csv(tmp_path / "products.csv", PRODUCTS)
    missing = tmp_path / "queries.csv"
    assert_one_line(lambda: read_manifest(products_path, missing), [str(missing), "no such file", "queries"])
    assert_one_line(lambda: ManifestSource(str(products_path), str(missing)).describe(), [str(missing)])
    missing.write_text("split,image,product_id\n")
    manifest = read_manifest(products_path, missing)
    assert_one_line(lambda: manifest.split("train"), ["queries.csv", "column 'split'", "'train'"])
    products_path.write_text("product_id,image,title\n")
    assert_one_line(lambda: read_manifest(products_path, missing), ["products.csv", "no rows"])


def test_empty_split_names_the_others(tmp_path: Path) -> None:
    manifest = read(tmp_path, "csv")
    assert_one_line(lambda: manifest.split("test"), ["queries.csv", "'test'", "['train', 'val']"])


def assert_one_line(call: Callable[[], Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def test_images_at_addresses(tmp_path: Path) -> None:
    products = [
        {"product_id": "1", "image": "https://cdn.shop/a.jpg|b.jpg", "title": "Mug"},
        {"product_id": "2", "image": f"file://{tmp_path}/c%20d.jpg|/e.jpg", "title": "Cup"},
    ]
    queries = [{"split": "train", "image": "s3://bucket/q.jpg", "product_id": "1"}]
    manifest = read(tmp_path, "csv", products, queries)
    assert manifest.products["1"].images == ("https://cdn.shop/a.jpg", tmp_path / "b.jpg")
    assert manifest.products["2"].images == (tmp_path / "c d.jpg", Path("/e.jpg"))
    assert manifest.queries[0].image == "s3://bucket/q.jpg"
    manifest = read(tmp_path, "csv", products, queries, image_root="https://cdn.shop/big/")
    assert manifest.products["1"].images == ("https://cdn.shop/a.jpg", "https://cdn.shop/big/b.jpg")


HELD = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


@pytest.mark.parametrize(
    ("kind", "some", "none", "null"),
    [
        (pyarrow.binary(), b"A", None, None),
        (HELD, {"bytes": b"A", "path": "a.jpg"}, None, {"bytes": None, "path": None}),
        (HELD, {"bytes": None, "path": "a.jpg"}, None, {"bytes": None, "path": None}),
        (pyarrow.list_(pyarrow.binary()), [b"A", b"B"], [], None),
        (pyarrow.large_list(HELD), [{"bytes": b"A", "path": None}] * 2, [], None),
    ],
)
def test_images_inside_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, some: Any, none: Any, null: Any
) -> None:
    monkeypatch.setattr(formats, "BATCH_SIZE", 1)
    pictures = pyarrow.array([some, none, some, null, some], kind)
    ids = [str(number) for number in range(5)]
    table = pyarrow.table(
        {"product_id": ids, "image": pictures, "title": ids, "thumbnail": pictures, "price": [1.5] * 5}
    )
    path = tmp_path / "products.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    products = read_manifest(path, None).products
    num_held = 2 if isinstance(some, list) else 1
    held = {
        number: tuple(TableCell(str(path), number, "image", item) for item in range(num_held)) for number in (0, 2, 4)
    }
    assert {int(name): product.images for name, product in products.items()} == {1: (), 3: ()} | held
    assert products["2"].metadata == {"price": 1.5}


def test_text_that_a_writer_did_not_mark_as_text(tmp_path: Path) -> None:
    table = pyarrow.table({"product_id": [b"a", b"b"], "image": [b"A", b"B"], "title": [b"Mug", b"\xff"]})
    pyarrow.parquet.write_table(table, tmp_path / "products.parquet")
    faults: list[RowIssue] = []
    manifest = read_manifest(tmp_path / "products.parquet", None, on_issue=faults.append)
    assert [(product.product_id, product.title) for product in manifest.products.values()] == [("a", "Mug")]
    assert [(fault.origin[-5:], fault.reason) for fault in faults] == [
        ("row 2", "a cell contains bytes that are not text")
    ]


def test_tables_in_many_files(tmp_path: Path) -> None:
    folder = tmp_path / "products" / "day=1"
    (folder / "_temporary").mkdir(parents=True)
    for name in ("part-1.parquet", "part-0.parquet", "_temporary/part-2.parquet"):
        write_parquet(folder / name, [{"product_id": name[5:6], "image": f"{name}.jpg", "title": "x"}])
    (folder / "_SUCCESS").touch()
    queries = write_csv(tmp_path / "queries.csv", [{"split": "train", "image": "q.jpg", "product_id": "1"}])
    for place in (tmp_path / "products", tmp_path / "products" / "day=*" / "part-*.parquet"):
        source = ManifestSource(str(place), str(queries))
        manifest = source.read(tmp_path)
        assert list(manifest.products) == ["0", "1"]
        assert manifest.products["1"].origin == f"{folder / 'part-1.parquet'}, row 1"
        before = source.describe()
        write_parquet(folder / "part-1.parquet", [{"product_id": "1", "image": "", "title": "y"}])
        assert source.describe() != before
        write_parquet(folder / "part-1.parquet", [{"product_id": "1", "image": "part-1.parquet.jpg", "title": "x"}])
    assert read_manifest(tmp_path / "products", None).products["0"].images == (
        tmp_path / "products" / "part-0.parquet.jpg",
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_tables_in_a_store(tmp_path: Path, kind: str) -> None:
    here = read(tmp_path, kind)
    store = fsspec.filesystem("memory")
    for name in ("products", "queries"):
        store.pipe(f"/shop/{name}.{kind}", (tmp_path / f"{name}.{kind}").read_bytes())
    source = ManifestSource(f"memory://shop/products.{kind}", f"memory://shop/queries.{kind}")
    there = source.read(tmp_path)
    assert list(there.products) == list(here.products)
    assert there.products["0012"].images == ("memory://shop/a.jpg", "memory://shop/b.jpg")
    assert there.queries[0].origin == here.queries[0].origin.replace(f"{tmp_path}/", "memory://shop/")
    assert source.describe() == ManifestSource(str(here.products_path), str(here.queries_path)).describe()
    store.rm("/shop", recursive=True)
    assert_one_line(lambda: source.read(tmp_path), ["memory://shop/products", "no such file"])


def test_the_id_of_a_table_with_images_needs_none_of_them(tmp_path: Path) -> None:
    def write(title: str, data: bytes) -> str:
        table = pyarrow.table({"product_id": ["a", "b"], "image": [data, b"x" * 5000], "title": [title, "Cup"]})
        pyarrow.parquet.write_table(table, tmp_path / "products.parquet", compression="none", write_statistics=False)
        return str(table_id(tmp_path / "products.parquet"))

    first = write("Mug", b"y" * 3000)
    assert write("Mug", b"y" * 3000) == first
    assert write("Mag", b"y" * 3000) != first
    assert write("Mug", b"y" * 3001) != first
    path = tmp_path / "products.parquet"
    whole = path.read_bytes()
    write("Mug", b"y" * 3000)
    changed = bytearray(path.read_bytes())
    changed[changed.index(b"yyyy") + 100] = 0
    path.write_bytes(changed)
    assert table_id(path) == first and whole != changed


def test_keys_that_engines_leave_out_are_empty_cells(tmp_path: Path) -> None:
    products = [{"product_id": "1", "title": "Mug"}, {"product_id": "2", "image": "a.jpg", "title": "Cup"}]
    manifest = read(tmp_path, "jsonl", products, [{"split": "train", "image": "q.jpg", "product_id": "1"}])
    assert [product.images for product in manifest.products.values()] == [(), (tmp_path / "a.jpg",)]
    assert_one_line(
        lambda: read(tmp_path, "jsonl", products[:1], []), ["products.jsonl: missing column 'image'", "'title'"]
    )


PAIRS = [
    {"split": "train", "photo": "q0.jpg", "words": "", "sku": "1", "image": "a.jpg", "title": "Mug", "price": "3"},
    {"split": "train", "photo": "q1.jpg", "words": "red", "sku": "2", "image": "b.jpg", "title": "Cup", "price": "4"},
    {"split": "val", "photo": "q2.jpg", "words": "", "sku": "1", "image": "c.jpg", "title": "Other mug", "price": "5"},
]
PAIR_COLUMNS = {"products": {"product_id": "sku"}, "queries": {"image": "photo", "text": "words"}}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_one_table_of_pairs(tmp_path: Path, kind: str) -> None:
    path = WRITERS[kind](tmp_path / f"pairs.{kind}", PAIRS)
    source = ManifestSource(None, str(path), PAIR_COLUMNS)
    manifest = source.read(tmp_path)
    assert list(manifest.products) == ["1", "2"]
    mug = manifest.products["1"]
    assert (mug.title, mug.images, mug.metadata) == ("Mug", (tmp_path / "a.jpg", tmp_path / "c.jpg"), {})
    assert [(query.split, query.image, query.text, query.target_ids) for query in manifest.queries] == [
        ("train", tmp_path / "q0.jpg", None, ("1",)),
        ("train", tmp_path / "q1.jpg", "red", ("2",)),
        ("val", tmp_path / "q2.jpg", None, ("1",)),
    ]
    priced = ManifestSource(None, str(path), PAIR_COLUMNS, metadata=["price"]).read(tmp_path)
    assert priced.products["2"].metadata == {"price": "4"}
    assert source.describe()["products"] is None


def test_pairs_of_one_query_are_one_query(tmp_path: Path) -> None:
    rows = [
        {"query_id": "q", "split": "train", "text": "red mug", "product_id": "1", "title": "Mug", "grade": "3"},
        {"query_id": "q", "split": "train", "text": "red mug", "product_id": "2", "title": "Cup", "grade": "1"},
        {"query_id": "q", "split": "train", "text": "red mug", "product_id": "3", "title": "Pan", "grade": "0"},
        {"query_id": "q", "split": "val", "text": "red mug", "product_id": "2", "title": "Cup", "grade": "1"},
    ]
    columns = {"products": {"image": None}, "queries": {"image": None}}
    faults: list[RowIssue] = []
    path = write_csv(tmp_path / "pairs.csv", rows)
    manifest = read_manifest(None, path, columns, on_issue=faults.append)
    (query,) = manifest.queries
    assert (query.target_ids, query.target_grades, query.reference_ids) == (("1", "2"), (3, 1), ("1", "2"))
    assert list(manifest.products) == ["1", "2", "3"]
    assert [str(fault) for fault in faults] == [
        f"{path}, row 5, column 'split': query 'q' is in split 'train' in {path}, row 2"
    ]


def test_neither_products_nor_queries(tmp_path: Path) -> None:
    assert_one_line(lambda: read_manifest(None, None), ["data.source: neither products nor queries"])
