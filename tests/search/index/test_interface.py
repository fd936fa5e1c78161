"""The contract of a product index, kept by both backends: answers as plain Python gives them, through every change."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mim_lightning.search.index.factory import create_index, open_index
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts
from tests.search.index.catalog import DIMENSION, FACTS, Shop, as_lists, make_shop, quantized

NASTY = ['it\'s "new"', "back\\slash\\", "two\nlines\t.", '" or price > 0 or "" == "', "{v} % 100", "Äpfel 🍎"]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("milvus") / "shop.db"


@pytest.fixture(scope="module", params=["faiss", "milvus"])
def backend(request: pytest.FixtureRequest) -> str:
    engine = ("pymilvus", "milvus_lite")
    if request.param == "milvus" and None in map(importlib.util.find_spec, engine):
        pytest.skip("milvus-lite is not installed (extra milvus)")
    return request.param


@pytest.fixture
def place(backend: str, request: pytest.FixtureRequest, tmp_path: Path, database: Path) -> str:
    """Somewhere to put an index, nothing there yet."""
    if backend == "faiss":
        return str(tmp_path / "index")
    return f"{database}#c{abs(hash(request.node.name)) % 10**12}"


@pytest.fixture(scope="module")
def standing(backend: str, tmp_path_factory: pytest.TempPathFactory, database: Path) -> tuple[Shop, str]:
    """A shop and the place of its index, which no test changes."""
    shop = make_shop(300, 110)
    place = str(tmp_path_factory.mktemp("index")) if backend == "faiss" else f"{database}#standing"
    shop.build(place, extra={"catalogue": "data/shop"})
    return shop, place


@pytest.mark.parametrize(
    ("num_rows", "num_products", "levels"), [(300, 300, 1), (300, 110, 1), (300, 110, 50), (9, 4, 1)]
)
def test_agrees_with_a_full_sort(place: str, num_rows: int, num_products: int, levels: int) -> None:
    shop, queries = make_shop(num_rows, num_products, 1, levels), quantized(12, 7, levels)
    index = shop.build(place)
    for k in (1, 4, 30):
        found = index.search(queries, k)
        assert found.product_ids.shape == found.scores.shape == (12, k) and found.scores.dtype == np.float32
        assert as_lists(found) == shop.answer(queries, k)


def test_a_query_finds_the_same_alone_and_among_others(standing: tuple[Shop, str]) -> None:
    index, queries = open_index(standing[1]), np.random.default_rng(0).normal(size=(40, DIMENSION))
    together = index.search(queries, 5)
    for row, query in enumerate(queries):
        alone = index.search(query[None], 5)
        assert alone.product_ids[0].tolist() == together.product_ids[row].tolist()
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-6)


def test_a_product_of_many_near_rows_is_one_hit(place: str) -> None:
    """The rows that are fetched first are all of one product: more must be fetched until others come."""
    shop = make_shop(200, 100, levels=1)
    many = Shop(np.full((300, DIMENSION), 5, np.float32), ["many"] * 300, {"many": {"product_id": "many"}})
    both = shop.updated(many)
    query = np.ones((1, DIMENSION), np.float32)
    found = both.build(place).search(query, 6)
    assert found.product_ids[0, 0] == "many"
    assert as_lists(found) == both.answer(query, 6)


def test_equal_scores_are_ordered_by_id(place: str) -> None:
    shop = make_shop(120, 120)
    shop.vectors[:] = 0.25
    found = shop.build(place).search(quantized(3, 1), 7)
    assert found.product_ids.tolist() == [sorted(shop.records)[:7]] * 3


@pytest.mark.parametrize(
    ("where", "allows"),
    [
        ({"category": "Milk"}, lambda r: r["category"] == "Milk"),
        ({"category": ["Milk", "Bread & Co"]}, lambda r: r["category"] in ("Milk", "Bread & Co")),
        ({"price": {"min": 5, "max": 20.5}}, lambda r: r["price"] and 5 <= float(r["price"]) <= 20.5),
        ({"price": {"max": 3}, "in_stock": True}, lambda r: r["price"] and float(r["price"]) <= 3 and r["in_stock"]),
        ({"price": [4.5, 7], "category": "Fruit"}, lambda r: r["price"] in ("4.5", "7.0") and r["category"] == "Fruit"),
        ({"product_id": ["p007", "nobody"]}, lambda r: r["product_id"] == "p007"),
        ({"title": "nothing"}, lambda r: False),
    ],
)
def test_a_filter_leaves_the_best_of_what_it_allows(
    standing: tuple[Shop, str], where: dict[str, Any], allows: Callable[[dict[str, Any]], bool]
) -> None:
    (shop, place), queries = standing, quantized(5, 3)
    assert as_lists(open_index(place).search(queries, 4, where)) == shop.answer(queries, 4, lambda r: bool(allows(r)))


def test_any_text_can_be_filtered_by(place: str) -> None:
    shop = make_shop(12, 12)
    for record, text in zip(shop.records.values(), NASTY * 2, strict=True):
        record["category"] = text
    index, query = shop.build(place), quantized(1, 1)
    for text in NASTY:
        assert as_lists(index.search(query, 12, {"category": text})) == shop.answer(
            query, 12, lambda record, text=text: record["category"] == text
        )


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"colour": "red"}, "no column 'colour'; there are category, in_stock, price, product_id, title"),
        ({"price": "cheap"}, "'price': 'cheap' cannot be compared, the column contains numbers"),
        ({"category": {"min": 1}}, "'category': a range needs numbers, the column contains text"),
    ],
)
def test_an_invalid_filter_is_an_error(standing: tuple[Shop, str], where: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_index(standing[1]).search(quantized(1, 1), 1, where)


def test_vectors_come_with_the_hits_when_asked_for(place: str) -> None:
    shop = make_shop(9, 4)
    query = quantized(1, 3)
    index = shop.build(place)
    found = index.search(query, 6, with_vectors=True)
    assert found.vectors is not None and found.vectors.shape == (1, 6, DIMENSION)
    np.testing.assert_array_equal(found.vectors[0] @ query[0], np.where(found.product_ids[0] == "", 0, found.scores[0]))
    assert {tuple(v) for v in found.vectors[0, :4].tolist()} <= {tuple(v) for v in shop.vectors.tolist()}
    assert index.search(query, 6).vectors is None


def test_products_and_their_vectors_are_found_by_id(standing: tuple[Shop, str]) -> None:
    shop, index = standing[0], open_index(standing[1])
    wanted = {**shop.records["p003"], "price": 1.5}
    assert index.products(["p003", "p000"]) == [wanted, {**shop.records["p000"], "price": None}]
    own = shop.vectors[[row for row, product_id in enumerate(shop.ids) if product_id == "p003"]]
    assert sorted(index.vectors_of("p003").tolist()) == sorted(own.tolist())
    for ask in (lambda: index.products(["p003", "p999"]), lambda: index.vectors_of("p999")):
        with pytest.raises(ValueError, match="no product 'p999' in the index"):
            ask()


def test_follows_every_change(place: str) -> None:
    """Products are added, changed and deleted in turn; each state, and each reopened one, is the plain model's."""
    shop, queries = make_shop(150, 60), quantized(4, 5)
    index = shop.build(place)
    generator = np.random.default_rng(3)
    for turn in range(4):
        gone = [f"p{number:03d}" for number in generator.integers(60, size=8)]
        assert index.delete([*gone, "nobody"]) == len(set(gone) & set(shop.records))
        shop = shop.without(gone)
        new = make_shop(20, 10, 10 + turn, prefix="p" if turn % 2 else "new")
        index.add(new.vectors, new.ids, new.table)
        shop = shop.updated(new)
        if turn % 2:
            index.save()
            index = open_index(place, FACTS.fingerprint)
        assert as_lists(index.search(queries, 9)) == shop.answer(queries, 9)
        dear = {"price": {"min": 4}}
        assert as_lists(index.search(queries, 9, dear)) == shop.answer(
            queries, 9, lambda r: bool(r["price"]) and float(r["price"]) >= 4
        )
        assert (index.card.num_products, index.card.num_rows) == (len(shop.records), len(shop.ids))
        assert index.products(sorted(shop.records)) and index.vectors_of(new.ids[0]).shape[1] == DIMENSION
        for product_id in set(gone) - set(shop.records):
            with pytest.raises(ValueError, match=product_id):
                index.products([product_id])


def test_additions_update_the_card(place: str) -> None:
    index, more = make_shop(9, 4).build(place, extra={"folders": ["a"], "model": "m"}), make_shop(3, 3, 5, prefix="new")
    index.add(more.vectors, more.ids, more.table, {"folders": ["a", "b"], "facets": {}})
    index.delete(["new000"])
    index.save()
    expected = {"folders": ["a", "b"], "model": "m", "facets": {}}
    assert index.card.extra == expected and open_index(place).card.extra == expected
    with pytest.raises(ValueError, match="no column 'weight'"):
        index.add(quantized(1, 1), ["x"], pa.table({"product_id": ["x"], "weight": [1]}), {"model": "other"})
    assert index.card.extra == expected


def test_all_products_can_be_deleted(place: str) -> None:
    shop = make_shop(9, 4)
    index = shop.build(place)
    assert index.delete(list(shop.records)) == 4
    assert index.search(quantized(2, 1), 3).product_ids.tolist() == [["", "", ""]] * 2
    assert index.card.num_products == index.card.num_rows == 0
    index.add(shop.vectors, shop.ids, shop.table)
    assert as_lists(index.search(quantized(2, 1), 3)) == shop.answer(quantized(2, 1), 3)


def test_additions_must_match_the_columns(place: str) -> None:
    index = make_shop(9, 4).build(place)
    vectors = quantized(1, 1)
    for column, message in (({"weight": [1.0]}, "no column 'weight'"), ({"price": ["dear"]}, "'price'.*numbers")):
        with pytest.raises(ValueError, match=message):
            index.add(vectors, ["x"], pa.table({"product_id": ["x"], **column}))
    assert index.card.num_products == 4


def test_the_card_describes_the_index(standing: tuple[Shop, str]) -> None:
    card = open_index(standing[1], FACTS.fingerprint).card
    assert (card.kind, card.gallery, card.dimension, card.metric) == ("flat", "product", DIMENSION, "inner_product")
    assert (card.num_products, card.num_rows, card.num_deleted) == (110, 300, 0)
    assert card.why.startswith("flat: 300 rows") and card.recall.value == 1 and card.build_seconds > 0
    assert card.extra == {"catalogue": "data/shop"} and card.settings["kind"] == "auto"


def test_another_models_index_is_refused_with_both_named(standing: tuple[Shop, str]) -> None:
    with pytest.raises(ValueError, match=r"model 0123456789abcdef, but the model is fedcba9876543210"):
        open_index(standing[1], "fedcba9876543210")


def test_a_graph_is_measured_and_replaces_what_was_there(place: str) -> None:
    make_shop(9, 4).build(place)
    shop = make_shop(600, 200, levels=200)
    built = shop.build(place, IndexSettings(kind="hnsw", recall_queries=50))
    assert built.card.recall.num_queries == 50 and 0.95 <= built.card.recall.value <= 1
    index, queries = open_index(place), quantized(30, 9, 200)
    assert index.card.kind == "hnsw" and index.card.num_products == 200
    found, truth = index.search(queries, 5), shop.answer(queries, 5)
    right = [len({i for i, _ in a} & {i for i, _ in b}) / 5 for a, b in zip(as_lists(found), truth, strict=True)]
    assert np.mean(right) > 0.95


def test_an_index_below_the_requested_recall_is_refused(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there stays; and nothing is left where nothing was."""
    monkeypatch.setattr("mim_lightning.search.index.index_type._MAX_EF_SEARCH", 1)
    old, shop = make_shop(9, 4), make_shop(700, 700, levels=1000)
    hopeless = IndexSettings(kind="hnsw", hnsw_m=2, ef_construction=1, ef_search=1, min_recall=0.999)
    with pytest.raises(ValueError, match=r"recall@10 is 0\.\d+, below index\.min_recall=0\.999"):
        shop.build(place, hopeless)
    with pytest.raises(ValueError, match=r"contains no|no such"):
        open_index(place)
    old.build(place)
    with pytest.raises(ValueError, match=r"index\.min_recall"):
        shop.build(place, hopeless)
    assert as_lists(open_index(place).search(quantized(2, 1), 3)) == old.answer(quantized(2, 1), 3)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.zeros((1, DIMENSION + 1)), 1, r"shape \(1, 7\), the index needs \(number of queries, 6\)"),
        (np.zeros(DIMENSION), 1, r"shape \(6,\)"),
        (np.full((1, DIMENSION), np.nan), 1, "not finite"),
        (np.zeros((1, DIMENSION)), 0, "k=0"),
    ],
)
def test_impossible_queries_are_errors(standing: tuple[Shop, str], queries: np.ndarray, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_index(standing[1]).search(queries, k)


def test_inconsistent_rows_are_reported(tmp_path: Path) -> None:
    shop = make_shop(9, 4)

    def build(vectors: np.ndarray, ids: list[str], table: pa.Table) -> None:
        create_index(vectors, ids, table, IndexSettings(), FACTS, tmp_path)

    broken = shop.vectors.copy()
    broken[5, 2] = np.inf
    twice = pa.concat_tables([shop.table, shop.table.slice(0, 1)])
    for arguments, message in (
        ((shop.vectors[:, :4], shop.ids, shop.table), r"shape \(9, 4\), must have rows of 6"),
        ((shop.vectors[:0], [], shop.table), r"shape \(0, 6\)"),
        ((shop.vectors, shop.ids[1:], shop.table), "9 vectors, but the products of 8 rows"),
        ((shop.vectors, ["x", *shop.ids[1:]], shop.table), "row 0: product 'x' is not in the product table"),
        ((broken, shop.ids, shop.table), f"row 5: the vector of product '{shop.ids[5]}' is not finite"),
        ((shop.vectors, shop.ids, twice), "is in the product table twice"),
        ((shop.vectors, shop.ids, shop.table.drop_columns("product_id")), "no column 'product_id'"),
    ):
        with pytest.raises(ValueError, match=message):
            build(*arguments)
    assert not list(tmp_path.iterdir())


def test_products_without_a_row_are_left_out(place: str) -> None:
    shop = make_shop(9, 4)
    extended = pa.concat_tables([shop.table, pa.table({"product_id": ["unseen"]})], promote_options="default")
    facts = ModelFacts("f", "product", DIMENSION)
    index = create_index(shop.vectors, shop.ids, extended, IndexSettings(), facts, place)
    assert index.card.num_products == 4
    with pytest.raises(ValueError, match="no product 'unseen'"):
        index.products(["unseen"])
