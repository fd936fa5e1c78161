"""Milvus only: addresses, expressions, one name for many collections, the limits of an engine."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mim_lightning.artifact_paths import is_address
from mim_lightning.search.index import milvus_client, milvus_search
from mim_lightning.search.index.factory import open_index
from mim_lightning.search.index.filters import OneOf, Within
from mim_lightning.search.index.index_settings import IndexSettings
from mim_lightning.search.index.milvus_client import MilvusCollection, parse_address
from mim_lightning.search.index.milvus_rows import BITS, VECTOR, column_fields, to_entities, to_expression, to_record
from mim_lightning.search.index.milvus_search import CollectionSize, MilvusSearch, RowHit
from mim_lightning.search.index.products import validate_rows
from tests.search.index.catalog import as_lists, make_shop, quantized


@pytest.fixture(scope="module")
def engine() -> None:
    pytest.importorskip("pymilvus", reason="extra milvus")
    pytest.importorskip("milvus_lite", reason="extra milvus")


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("http://host:19530", ("http://host:19530", "", "products")),
        ("https://host#shop_1", ("https://host", "", "shop_1")),
        ("tcp://host:1/sales#shop", ("tcp://host:1", "sales", "shop")),
        ("data/shop.db", ("data/shop.db", "", "products")),
        ("/data/my.files/shop.db#fruit", ("/data/my.files/shop.db", "", "fruit")),
    ],
)
def test_addresses_are_read(address: str, place: tuple[str, str, str]) -> None:
    assert is_address(address)
    assert parse_address(address) == MilvusCollection(address, *place)


def test_a_folder_is_no_address() -> None:
    assert not any(map(is_address, ["runs/index", "shop.db/index", "/a/b#c", "db"]))


@pytest.mark.parametrize("address", ["ftp://host", "http://", "http://host/a/b#c", "x.db#two words", "x.db#1st"])
def test_impossible_addresses_are_errors(address: str) -> None:
    with pytest.raises(ValueError, match=f"^{address}: "):
        parse_address(address)


def test_columns_of_any_name_have_a_field() -> None:
    columns = ["title", "product_id", "Größe (cm)"]
    assert column_fields(columns) == {"product_id": "product_id", "title": "column_0", "Größe (cm)": "column_1"}
    entity = {"product_id": "p", "column_0": "t", "column_1": 3.0, "vector": []}
    assert to_record(entity, columns) == {"title": "t", "product_id": "p", "Größe (cm)": 3.0}


def test_conditions_are_written_in_milvus_language() -> None:
    columns = ["product_id", "brand", "price", "new"]
    conditions = [
        OneOf("brand", ('a"b', "c\\")),
        Within("price", 1, None),
        OneOf("new", (True,)),
        Within("price", 0, 1e20),
    ]
    assert to_expression(conditions, columns) == (
        'column_0 in ["a\\"b", "c\\\\"] and column_1 >= 1.0 and column_2 in [true] '
        "and column_1 >= 0.0 and column_1 <= 1e+20"
    )
    assert to_expression([], columns) == ""


def test_a_missing_pymilvus_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ValueError, match=r"a Milvus index needs pymilvus: pip install 'mim-lightning\[milvus\]'"):
        make_shop(9, 4).build(tmp_path / "shop.db")


@pytest.mark.usefixtures("engine")
def test_a_missing_database_or_collection_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shop\.db: no such database"):
        open_index(tmp_path / "shop.db")
    assert not list(tmp_path.iterdir())
    make_shop(9, 4).build(tmp_path / "shop.db")
    with pytest.raises(ValueError, match="contains no collection 'fruit'"):
        open_index(f"{tmp_path}/shop.db#fruit")
    with pytest.raises(ValueError, match=r"^http://127\.0\.0\.1:9: .*[Ff]ail"):
        open_index("http://127.0.0.1:9")


@pytest.mark.usefixtures("engine")
def test_building_again_leaves_one_collection_and_spares_others(tmp_path: Path) -> None:
    place, shop = f"{tmp_path}/shop.db#fruit", make_shop(20, 8)
    first = make_shop(9, 4).build(place)
    second = shop.build(place)
    client = second.collection.client
    assert client.list_collections() == [second.name] != [first.name]
    assert as_lists(open_index(place).search(quantized(2, 1), 8)) == shop.answer(quantized(2, 1), 8)
    with pytest.raises(ValueError, match=r"shop\.db#fruit: .*IVF_PQ"):  # not offered by this engine
        shop.build(place, IndexSettings(kind="ivf_pq", nlist=2, min_recall=0))
    assert client.list_collections() == [second.name]
    client.create_collection("foreign", dimension=4)
    with pytest.raises(ValueError, match="'foreign' exists and is not a product index"):
        shop.build(f"{tmp_path}/shop.db#foreign")
    with pytest.raises(ValueError, match="'foreign' was not built as a product index"):
        open_index(f"{tmp_path}/shop.db#foreign")
    assert client.has_collection("foreign")


@pytest.mark.usefixtures("engine")
def test_an_index_outlives_the_engine_and_is_held_by_one(tmp_path: Path) -> None:
    """The name and the card are in the database; a file that another process holds is an error."""
    from milvus_lite.server_manager import server_manager_instance

    fcntl = pytest.importorskip("fcntl")
    path, shop = tmp_path / "shop.db", make_shop(20, 8)
    index = shop.build(path)
    index.delete(["p000"])
    index.save()
    server_manager_instance.release_server(str(path))
    with (path / "LOCK").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"shop\.db: .*; another process may have it open"):
            open_index(path)
    opened, shop = open_index(path), shop.without(["p000"])
    assert (opened.card.num_products, opened.card.num_rows) == (7, len(shop.ids))
    assert as_lists(opened.search(quantized(2, 1), 8)) == shop.answer(quantized(2, 1), 8)


@pytest.mark.usefixtures("engine")
def test_coarse_codes_are_reranked_by_the_vectors(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shop = make_shop(600, 200)
    vectors = generator.normal(size=(600, 16))
    shop.vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    index = shop.build(f"{tmp_path}/shop.db", IndexSettings(kind="sq8", recall_queries=40))
    assert index.card.recall.value >= 0.95
    query = generator.normal(size=(5, 16)).astype(np.float32)
    for found, truth in zip(as_lists(index.search(query, 5)), shop.answer(query, 5), strict=True):
        exact = dict(truth)
        assert len(exact.keys() & dict(found).keys()) >= 4
        assert all(score == pytest.approx(exact.get(hit, score), abs=1e-5) for hit, score in found)
    rare = {"price": {"max": 3}}
    allowed = shop.answer(query, 5, lambda r: bool(r["price"]) and float(r["price"]) <= 3)
    assert [[i for i, _ in hits] for hits in as_lists(index.search(query, 5, rare))] == [
        [i for i, _ in h] for h in allowed
    ]


@pytest.mark.usefixtures("engine")
def test_a_lost_server_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from milvus_lite.server_manager import server_manager_instance

    monkeypatch.setattr(milvus_client, "TIMEOUT", 1.0)
    index = make_shop(9, 4).build(f"{tmp_path}/shop.db")
    with pytest.raises(ValueError, match="k=20000: Milvus returns fewer than 16384"):
        index.search(quantized(1, 1), 20_000)
    server_manager_instance.release_server(str(tmp_path / "shop.db"))
    for ask in (
        lambda: index.search(quantized(1, 1), 1),
        lambda: index.search(quantized(1, 1), 1, {"category": "Milk"}),
        lambda: index.products(["p001"]),
    ):
        with pytest.raises(ConnectionError, match=r"^.*shop\.db: "):
            ask()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "binary"}, r"shop\.db: the embedded engine of Milvus has no vectors of bits; give the address"),
        (
            {"precision": "int8", "kind": "flat"},
            r"precision=int8 with index\.kind=flat: Milvus has 8-bit codes with .*ivf",
        ),
        ({"precision": "int8", "rescore": "int8"}, r"index\.rescore=int8: Milvus keeps vectors in float32"),
    ],
)
def test_precisions_that_milvus_has_not_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_shop(40, 40).build(f"{tmp_path}/shop.db", IndexSettings(**options))


def test_more_rows_than_an_answer_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [RowHit(1 - row / 100, f"p{row // 5}", None) for row in range(20)]
    monkeypatch.setattr(milvus_search, "MAX_ROWS", 6)
    monkeypatch.setattr(MilvusSearch, "_fetch", lambda self, query_QD, limit, *_: [rows[:limit] for _ in query_QD])
    rank = partial(MilvusSearch(None, "shop", "flat", IndexSettings()).rank, quantized(2, 1))  # type: ignore[arg-type]
    size = CollectionSize(20, 4, 20)
    assert [[hit.product_id for hit in hits] for hits in rank(1, "", size, False)] == [["p0"]] * 2
    with pytest.raises(ValueError, match=r"^k=3: the best 6 rows, the most that Milvus returns .* are of 2 products"):
        rank(3, "", size, False)
    assert len(rank(3, "", CollectionSize(20, 2, 20), False)[0]) == 2  # the index has no more products
    assert len(rank(3, "category == 'cup'", CollectionSize(20, 4, 10), False)[0]) == 2
    rows[6:] = []  # all there are
    assert len(rank(3, "", CollectionSize(6, 2, 6), False)[0]) == 2


class BitServer:
    """What a server does in a search of bits: the rows with the fewest that differ."""

    def __init__(self, entities: list[dict]) -> None:
        self.entities = entities

    def search(self, name, data, limit, output_fields, search_params, anns_field, **_) -> list[list[dict]]:
        assert (anns_field, search_params["metric_type"]) == (BITS, "HAMMING") and VECTOR in output_fields
        answers = []
        for code in data:
            distances = [(int.from_bytes(code) ^ int.from_bytes(row[BITS])).bit_count() for row in self.entities]
            order = sorted(range(len(distances)), key=distances.__getitem__)[:limit]
            answers.append([{"distance": distances[row], "entity": self.entities[row]} for row in order])
        return answers


def test_bits_of_a_server_are_reranked_by_the_vectors() -> None:
    shop = make_shop(60, 60)
    rows = validate_rows(shop.vectors, shop.ids, shop.table, shop.vectors.shape[1])
    (entities,) = to_entities(rows, has_bits=True)
    server = SimpleNamespace(client=BitServer(entities), errors_as=nullcontext)
    settings = IndexSettings(precision="binary", rerank=6)  # all rows are candidates: the answer is exact
    search = MilvusSearch(server, "shop", "binary_flat", settings)
    queries = quantized(5, 8)
    best = search.rank(queries, 3, "", CollectionSize(60, 60, 60), with_vectors=False)
    expected = shop.answer(queries, 3)
    for hits, answer in zip(best, expected, strict=True):
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in answer])
