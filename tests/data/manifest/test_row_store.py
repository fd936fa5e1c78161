"""Rows come back from a store as they were and in their order, also those that do not fit into its memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mim_lightning.data.images.reader import TableCell, TarMember
from mim_lightning.data.manifest import row_store
from mim_lightning.data.manifest.builder import ManifestBuilder
from mim_lightning.data.manifest.manifest import Manifest, StoredProducts, StoredQueries
from mim_lightning.data.manifest.row_store import RowChanges, RowStore, rows_in
from mim_lightning.data.manifest.rows import (
    IssueType,
    NothingRelevantError,
    Product,
    Query,
    RowError,
    RowIssue,
    join_query,
    parse_product,
    parse_query,
)
from mim_lightning.data.manifest.stored_rows import store_rows


@pytest.fixture
def store() -> Iterator[RowStore]:
    found = RowStore()
    yield found
    found.close()


def test_rows_of_every_kind_come_back(store: RowStore) -> None:
    images = (
        Path("/a/Grün.jpg"),
        "https://shop/a b.jpg",
        TableCell("t.parquet", 3, "image", 1),
        TarMember("t", "n", 5, 9),
    )
    products = [
        Product("7", images, "A “mug”. Blue", "A “mug”", "mugs", {"price": 1.5, "stock": 3, "size": "L"}, "p, row 2"),
        Product("8\n", (), None, None, None, {}, "p, row 3", {"product_brand": "x & y"}),
        Product("9", (Path("b\udc80.jpg"),), "", "", "", {"a": "half of \ud83d"}, "p, row 4"),
    ]
    queries = [
        Query(
            "q",
            "train",
            images[2],
            None,
            ("7", "8\n"),
            (1, 2),
            ("7", "8\n"),
            {"kind": "a"},
            "q, row 2",
            0.1,
            {"7": 2.0},
        ),
        Query("r", "val", None, "blue", ("9",), (1,), ("7",), {}, "q, row 3", fields={"query_x": "y"}),
    ]
    rows = store_rows(products, queries, store)
    manifest = Manifest(StoredProducts(rows), StoredQueries(rows), "p", "q")
    assert list(manifest.products.values()) == products and list(manifest.queries) == queries
    assert repr(manifest.queries[-1]) == repr(queries[1]) and manifest.queries[:1] == queries[:1]
    assert manifest.products == {product.product_id: product for product in products} and "10" not in manifest.products
    assert list(rows.image_refs()) == [*images, products[2].images[0], images[2]]
    assert manifest.stored() is rows and manifest.in_memory() == Manifest(manifest.products, queries, "p", "q")


@pytest.mark.parametrize("at_once", [8, 1 << 20])
def test_ranks_are_those_of_numpys_permutation(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_store, "NUM_AT_ONCE", at_once)
    items = np.array([f"id {number}" for number in range(100)])
    with rows_in(tmp_path / "rows"):
        store = RowStore()
        rng, ours = np.random.default_rng(3), np.random.default_rng(3)
        for size in (1, 37, 100):  # one generator after the other
            ranks = store.shuffled_ranks(size, ours)
            assert rng.permutation(items[:size])[ranks].tolist() == items[:size].tolist()
        assert rng.random() == ours.random()
    assert list((tmp_path / "rows").iterdir()) == []


def test_changes_keep_the_order(store: RowStore) -> None:
    table = store.create("numbers", "position BIGINT, name VARCHAR")
    store.write(table, ((number, str(number)) for number in range(2_000)))
    changes = RowChanges(store, "position BIGINT, name VARCHAR")
    changes.drop(0)
    only_dropped = changes.apply(table)
    changes = RowChanges(store, "position BIGINT, name VARCHAR")
    changes.drop(0)
    changes.change((700, "seven hundred"))
    names = [name for _, name in store.read(f"FROM {changes.apply(table)}")]
    assert names == [*map(str, range(1, 700)), "seven hundred", *map(str, range(701, 2_000))]
    assert [number for number, _ in store.read(f"FROM {only_dropped}")] == list(range(1, 2_000))
    assert store.number(f"SELECT count(*) FROM {table}") == 2_000
    assert RowChanges(store, "position BIGINT, name VARCHAR").apply(table) == table
    left = sorted(name for (name,) in store.run("SHOW TABLES"))
    assert [name.rstrip("0123456789") for name in left] == ["numbers_", "rows_", "rows_"]


def test_what_exceeds_the_memory_is_sorted_on_disk(tmp_path: Path) -> None:
    with rows_in(tmp_path, memory=180 << 20):
        store = RowStore()
        num = 400_000
        table = store.select(
            "texts",
            f"SELECT range * 7919 % {num} AS position, repeat(md5(range::VARCHAR), 17) AS body FROM range({num})",
        )
        found = store.read(f"SELECT position, length(body) FROM (FROM {table} ORDER BY position)")
        assert all(row == (number, 544) for number, row in enumerate(found))
        assert any(path.stat().st_size for path in tmp_path.rglob("*.tmp"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("max_temp_directory_size='1MB'", ["the disk is full", "rows need about"]),
        ("temp_directory=''", ["memory_limit="]),
    ],
)
def test_a_full_disk_and_too_little_memory_are_one_line(setting: str, words: list[str], tmp_path: Path) -> None:
    with rows_in(tmp_path, memory=32 << 20):
        store = RowStore()
        store.run(f"SET {setting}")
        table = store.create("texts", "body VARCHAR")
        with pytest.raises(ValueError, match=words[0]) as error:
            store.write(table, ((f"{number:09d}" * 100,) for number in range(100_000)))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value) or setting.startswith("temp_directory")


# --- against dicts --------------------------------------------------------------------------------------------


def naive(products: list[dict[str, Any]], queries: list[dict[str, Any]]) -> tuple[Any, ...]:
    """Return products, queries and issues as dicts find them, a row after the other."""
    found: dict[str, Product] = {}
    asked: dict[str, Query] = {}
    issues: list[RowIssue] = []
    dropped: dict[str, str] = {}
    irrelevant: list[tuple[str, RowError, str]] = []
    for number, row in enumerate(products):
        try:
            product = parse_product(row, Path("r"), f"p, row {number}", None)
            if product.product_id in found:
                reason = f"'{product.product_id}' is already in {found[product.product_id].origin}"
                raise RowError("product_id", reason, IssueType.DUPLICATE_ID)
            found[product.product_id] = product
        except RowError as error:
            dropped.setdefault(row["product_id"], f"p, row {number}")
            issues.append(error.at("products", f"p, row {number}", row["product_id"]))
    for number, row in enumerate(queries):
        origin = f"q, row {number}"
        try:
            query = parse_query(row, Path("r"), origin, number, ())
            first = asked.get(query.query_id)
            asked[query.query_id] = query if first is None else join_query(first, query)
        except NothingRelevantError as error:
            irrelevant.append((row["query_id"], error, origin))
        except RowError as error:
            issues.append(error.at("queries", origin, row["query_id"]))
    issues += [error.at("queries", origin, name) for name, error, origin in irrelevant if name not in asked]
    for query in list(asked.values()):
        known = [one.removesuffix(".0") if one not in found and one.endswith(".0") else one for one in query.target_ids]
        known = [one if one in found else old for one, old in zip(known, query.target_ids, strict=True)]
        if query.reference_ids == query.target_ids and len(set(known)) == len(known) and known != [*query.target_ids]:
            query = Query(**{**vars(query), "target_ids": tuple(known), "reference_ids": tuple(known)})
            asked[query.query_id] = query
        unknown = next((one for one in query.target_ids if one not in found), None)
        if unknown is not None:
            del asked[query.query_id]
            kind, more = IssueType.UNKNOWN_PRODUCT, ""
            if unknown in dropped:
                kind, more = IssueType.DROPPED_PRODUCT, f" (invalid: {dropped[unknown]})"
            reason = f"product '{unknown}' is not in p{more}"
            issues.append(RowIssue("queries", query.origin, "product_id", query.query_id, reason, kind))
    return list(found.values()), list(asked.values()), issues


@pytest.mark.parametrize("seed", range(4))
def test_rows_and_issues_are_those_that_dicts_find(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_store, "BATCH_ROWS", 7)
    rng = random.Random(seed)
    names = [str(number) for number in range(12)]
    products = [
        {"product_id": rng.choice([*names, ""]), "title": rng.choice(["a", "b", ""]), "metadata": {}} for _ in range(20)
    ]
    queries = [
        {
            "query_id": rng.choice(["", *(f"q{number}" for number in range(15))]),
            "split": rng.choice(["train", "train", "val", ""]),
            "text": rng.choice(["x", "x", "y"]),
            "product_id": rng.choice([*names, "3.0|4", "5.0", "no", "1|2"]),
            "grade": rng.choice(["", "", "0", "2"]),
        }
        for _ in range(60)
    ]
    issues: list[RowIssue] = []
    builder = ManifestBuilder("p", issues.append)
    for number, row in enumerate(products):
        builder.add_product(f"p, row {number}", row, Path("r"))
    for number, row in enumerate(queries):
        builder.add_query(f"q, row {number}", row, Path("r"))
    rows = builder.finish()
    assert (list(rows.read_products()), list(rows.read_queries()), issues) == naive(products, queries)
    assert {issue.kind for issue in issues} >= {IssueType.DUPLICATE_ID, IssueType.INVALID_ROW}
    builder.store.close()
