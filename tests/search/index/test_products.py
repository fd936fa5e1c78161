"""The table of an index's products: what becomes a number, order and look-up by id, masks against plain Python."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mim_lightning.search.index.filters import FLAG, NUMBER, TEXT, OneOf, Within, parse_filter
from mim_lightning.search.index.products import ProductTable, merge_products, read_products, type_products


def table(**columns: Any) -> pa.Table:
    length = len(next(iter(columns.values())))
    return pa.table({"product_id": [f"p{row}" for row in range(length)], **columns})


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["1", "2.5", "-3e2", " 4 ", ""], NUMBER, [1, 2.5, -300, 4, None]),
        ([1, 2, None], NUMBER, [1, 2, None]),
        (["1", "two"], TEXT, ["1", "two"]),
        (["0012", "0034"], TEXT, ["0012", "0034"]),  # article numbers
        (["0", "0.5"], NUMBER, [0, 0.5]),
        (["nan", "1"], TEXT, ["nan", "1"]),
        (["", "  "], TEXT, [None, None]),
        ([True, None], FLAG, [True, None]),
        (["true", "false"], TEXT, ["true", "false"]),
        ([datetime.date(2024, 5, 1)], TEXT, ["2024-05-01"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), TEXT, ["a", "b", "a"]),
        (pa.array(["7", "8"]).dictionary_encode(), NUMBER, [7, 8]),
    ],
)
def test_columns_are_typed_by_their_cells(cells: Any, kind: str, values: list) -> None:
    typed = type_products(table(column=cells))
    assert typed.column_types["column"] == kind
    assert typed.table["column"].to_pylist() == values


def test_names_stay_texts() -> None:
    typed = type_products(pa.table({"product_id": ["2", "1"], "title": ["1984", "451"], "category": ["7", "7"]}))
    assert typed.table.to_pylist()[0] == {"product_id": "1", "title": "451", "category": "7"}
    assert type_products(pa.table({"product_id": [2, 10]})).ids.to_pylist() == ["10", "2"]


def test_ids_are_found_and_returned() -> None:
    ids = ["é", "z", "a", "", "日本", "Z", "aa", "b" * 300][::-1]
    typed = type_products(pa.table({"product_id": [i for i in ids if i]}))
    order = sorted(i for i in ids if i)
    assert typed.ids.to_pylist() == order
    assert typed.ids_at(np.array([[2, -1], [0, 6]])).tolist() == [[order[2], ""], [order[0], order[6]]]
    assert typed.find(["Z", "nobody", "日本", "", "zz"]).tolist() == [order.index("Z"), -1, order.index("日本"), -1, -1]
    assert ProductTable(typed.table.slice(2)).ids_at(np.array([0])).tolist() == [order[2]]


def test_many_ids_are_found_like_few() -> None:
    typed = type_products(pa.table({"product_id": [f"{number:05d}" for number in range(0, 6000, 2)]}))
    wanted = [f"{number:05d}" for number in range(3000)]
    found = typed.find(wanted)
    assert found.tolist() == [number // 2 if number % 2 == 0 else -1 for number in range(3000)]
    assert np.concatenate([typed.find(wanted[:900]), typed.find(wanted[900:1800])]).tolist() == found[:1800].tolist()


def test_masks_are_those_of_plain_python() -> None:
    generator = np.random.default_rng(0)
    rows = [
        {
            "product_id": f"{row:03d}",
            "brand": str(generator.choice(["a", "b", ""])) or None,
            "price": int(generator.integers(9)) if generator.random() < 0.8 else None,
            "new": bool(generator.integers(2)),
        }
        for row in range(90)
    ]
    typed = type_products(pa.Table.from_pylist(rows))
    for conditions, allows in (
        ([OneOf("brand", ("a",))], lambda r: r["brand"] == "a"),
        (
            [Within("price", 2, 5), OneOf("new", (True,))],
            lambda r: r["price"] is not None and 2 <= r["price"] <= 5 and r["new"],
        ),
        ([OneOf("price", (3.0, 4.0))], lambda r: r["price"] in (3, 4)),
        ([], lambda r: True),
    ):
        assert typed.mask(conditions).tolist() == [bool(allows(row)) for row in rows]


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    typed = type_products(table(price=["1", ""], brand=["ü", "b"], new=[True, False]))
    typed.write(tmp_path / "products.arrow")
    assert read_products(tmp_path / "products.arrow").table.equals(typed.table)
    (tmp_path / "products.arrow").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"products\.arrow: damaged"):
        read_products(tmp_path / "products.arrow")


def test_added_products_take_the_types_of_the_index() -> None:
    kinds = {"product_id": TEXT, "brand": TEXT, "price": NUMBER}
    added = type_products(table(brand=["1", "2"]), column_types=kinds)
    assert added.table.to_pylist() == [
        {"product_id": "p0", "brand": "1", "price": None},
        {"product_id": "p1", "brand": "2", "price": None},
    ]
    assert merge_products([added, type_products(pa.table({"product_id": ["a"]}), kinds)]).ids.to_pylist() == [
        "a",
        "p0",
        "p1",
    ]


@pytest.mark.parametrize(
    ("products", "message"),
    [
        (pa.table({"id": ["a"]}), "no column 'product_id', it has id"),
        (pa.table({"product_id": ["a", "b", "a"]}), "product 'a' is in the product table twice"),
        (pa.table({"product_id": ["a", " "]}), "1 products have no product_id"),
        (pa.table({"product_id": ["a"], "tags": [["x"]]}), "column 'tags' contains list"),
        (pa.table([["a"], [1], [2]], names=["product_id", "x", "x"]), "a column twice: product_id, x, x"),
    ],
)
def test_unusable_tables_are_errors(products: pa.Table, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        type_products(products)


@pytest.mark.parametrize(
    ("cells", "expected", "kind"),
    [
        (["5", "", "40"], [5, None, 40], pa.int64()),
        (["5.0", "", "40.0"], [5, None, 40], pa.int64()),  # as a data frame writes a column with gaps
        ([5.0, None, 40.0], [5, None, 40], pa.int64()),
        ([5, None, 2**60 + 1], [5, None, 2**60 + 1], pa.int64()),
        (["5", "", "40.5"], [5.0, None, 40.5], pa.float64()),
        ([5.0, None, 40.5], [5.0, None, 40.5], pa.float64()),
        ([1e300, None, 4.0], [1e300, None, 4.0], pa.float64()),
        (["5", "", "99999999999999999999"], [5.0, None, 1e20], pa.float64()),
        ([5.0, None, float("nan")], None, pa.float64()),
    ],
)
def test_whole_numbers_stay_whole(cells: list[Any], expected: list[Any] | None, kind: pa.DataType) -> None:
    typed = type_products(pa.table({"product_id": ["a", "b", "c"], "price": cells}))
    assert typed.column_types["price"] == NUMBER and typed.table["price"].type == kind
    found = [record["price"] for record in typed.records(np.arange(3))]
    assert expected is None or repr(found) == repr(expected)


def test_filters_on_whole_numbers() -> None:
    typed = type_products(pa.table({"product_id": ["a", "b", "c"], "price": [5, 2**60 + 1, None]}))
    for where, expected in (
        ({"price": 5}, "a"),
        ({"price": [5.5, 5]}, "a"),
        ({"price": {"min": 4.5, "max": 5.5}}, "a"),
        ({"price": {"min": 5.5}}, "b"),
        ({"price": {"max": 1e300}}, "ab"),
    ):
        assert "".join(typed.ids.filter(typed.mask(parse_filter(where, typed.column_types))).to_pylist()) == expected


def test_whole_numbers_join_with_others() -> None:
    first = type_products(pa.table({"product_id": ["a"], "price": [5], "stock": [2**60 + 1]}))
    second = type_products(pa.table({"product_id": ["b"], "price": [5.5], "stock": [3]}), first.column_types)
    third = type_products(pa.table({"product_id": ["c"], "price": ["7"]}), first.column_types)
    joined = merge_products([first, second, third])
    assert joined.table["price"].to_pylist() == [5.0, 5.5, 7.0]
    assert joined.table["stock"].to_pylist() == [2.0**60, 3.0, None]
