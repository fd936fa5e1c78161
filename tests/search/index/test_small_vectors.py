"""Vectors cut to a dimension and codes of fewer bits: what is found, what is stored, what the card says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mim_lightning.search.index.factory import open_index
from mim_lightning.search.index.faiss_types import search_parameters
from mim_lightning.search.index.index_settings import FAMILIES, IndexSettings
from mim_lightning.search.index.product_ranking import compute_scores
from mim_lightning.search.index.recall import compute_true_scores
from mim_lightning.search.index.small_vectors import Int8Vectors, cut_vectors, encode_int8, encode_signs, round_vectors
from tests.search.index.catalog import Shop, make_shop

WIDTH, CUT = 20, 12
SMALL = [
    ("int8", "flat", "float32"),
    ("int8", "hnsw", "int8"),
    ("int8", "ivf", "float32"),
    ("binary", "flat", "int8"),
    ("binary", "ivf", "float32"),
]


def unit(num_rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((num_rows, WIDTH)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_unit_shop(num_products: int, seed: int = 0, first: int = 0) -> Shop:
    shop = make_shop(num_products, num_products, seed)
    names = {product_id: f"{first + number:05d}" for number, product_id in enumerate(shop.records)}
    records = {names[key]: {**record, "product_id": names[key]} for key, record in shop.records.items()}
    return Shop(unit(num_products, seed), [names[product_id] for product_id in shop.ids], records)


def naive_cut(vectors: np.ndarray) -> np.ndarray:
    return vectors[:, :CUT] / np.linalg.norm(vectors[:, :CUT], axis=1, keepdims=True)


@pytest.fixture(scope="module")
def shop() -> Shop:
    return make_unit_shop(1500)


@pytest.mark.parametrize(("precision", "kind", "rescore"), SMALL)
def test_small_codes_select_and_stored_vectors_rank(
    shop: Shop, tmp_path: Path, precision: str, kind: str, rescore: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = IndexSettings(kind=kind, precision=precision, rescore=rescore, dimension=CUT, rerank=20, num_threads=1)
    shop.build(tmp_path, settings)
    index = open_index(tmp_path, verify=True)
    stored = naive_cut(shop.vectors)
    stored = np.asarray(Int8Vectors(encode_int8(stored))) if rescore == "int8" else stored
    queries = unit(40, 9)
    scores = naive_cut(queries) @ stored.T
    best = [{shop.ids[row] for row in row_scores.argsort()[-5:]} for row_scores in scores]
    found = index.search(queries, 5)
    overlap = [len(set(ids) & wanted) for ids, wanted in zip(found.product_ids.tolist(), best, strict=True)]
    assert np.mean(overlap) >= 4.7, "of 5"
    place = {product_id: row for row, product_id in enumerate(shop.ids)}
    for query, ids, row_scores in zip(scores, found.product_ids, found.scores, strict=True):
        np.testing.assert_allclose(row_scores, [query[place[product_id]] for product_id in ids], atol=1e-6)
    same = index.search(naive_cut(queries), 5)
    assert (same.product_ids == found.product_ids).all(), "queries are cut as rows are, whoever does it"
    card = index.card
    assert (card.precision, card.dimension, card.full_dimension) == (precision, CUT, WIDTH)
    codes = {"int8": CUT, "binary": 2}[precision] + {"flat": 0, "hnsw": 8 * 32 + 16, "ivf": 8}[kind]
    assert card.memory_bytes_per_row == codes
    assert card.disk_bytes_per_row == codes + (CUT + 4 if rescore == "int8" else 4 * CUT)
    sizes = {path.name.partition("-")[0]: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes["main_vectors"] - 128 == len(shop.ids) * (CUT + 4 if rescore == "int8" else 4 * CUT)
    assert card.recall.value >= 0.95 and card.full_recall is not None
    # the best ten by the full vectors, by the definition
    noisy = shop.vectors + 0  # every product once: the queries are rows with noise, so recall is of the same order
    true = [{shop.ids[row] for row in row_scores.argsort()[-10:]} for row_scores in noisy[:200] @ shop.vectors.T]
    ids = index.search(noisy[:200], 10).product_ids.tolist()
    measured = np.mean([len(set(got) & wanted) / 10 for got, wanted in zip(ids, true, strict=True)])
    assert card.full_recall.value == pytest.approx(measured, abs=0.12) and card.full_recall.value < 0.9


@pytest.mark.parametrize(("precision", "kind", "rescore"), [("int8", "flat", "int8"), ("binary", "ivf", "float32")])
def test_additions_deletions_filters_and_merges_stay_right(
    shop: Shop, tmp_path: Path, precision: str, kind: str, rescore: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = IndexSettings(
        kind=kind, precision=precision, rescore=rescore, dimension=CUT, rerank=40, nprobe=99, num_threads=1
    )
    index, more = shop.build(tmp_path, settings), make_unit_shop(60, 3, first=1450)
    index.add(more.vectors, more.ids, more.table)
    index.delete([f"{number:05d}" for number in range(10)])
    index.save()
    whole = shop.updated(more).without([f"{number:05d}" for number in range(10)])

    def check(index, expected: Shop) -> None:
        rows = np.asarray(Int8Vectors(encode_int8(naive_cut(expected.vectors))))
        cut = Shop(rows if rescore == "int8" else naive_cut(expected.vectors), expected.ids, expected.records)
        queries = unit(10, 5)
        for where, allows in (
            (None, lambda record: True),
            ({"category": "Milk"}, lambda record: record["category"] == "Milk"),
        ):
            found = index.search(queries, 3, where)
            answers = cut.answer(naive_cut(queries), 3, allows)
            hits = [
                len({key for key, _ in answer} & set(ids))
                for answer, ids in zip(answers, found.product_ids.tolist(), strict=True)
            ]
            assert np.mean(hits) >= 2.8, "of 3"
        assert index.card.num_products == len(expected.records)
        np.testing.assert_allclose(index.vectors_of(expected.ids[-1])[0], cut.vectors[-1], atol=1e-6)

    check(open_index(tmp_path), whole)
    monkeypatch.setattr("mim_lightning.search.index.faiss_index.FLAT_ROWS", 50)  # the delta joins the base
    index, last = open_index(tmp_path), make_unit_shop(30, 4, first=3000)
    index.add(last.vectors, last.ids, last.table)
    index.save()
    assert "fresh_index" not in index.card.files and index.card.kind == FAMILIES[precision][kind]
    check(open_index(tmp_path, verify=True), whole.updated(last))
    index = open_index(tmp_path)
    index.delete(whole.ids[:900])  # most rows: the index is built again
    index.save()
    assert index.card.num_deleted == 0
    check(open_index(tmp_path), whole.updated(last).without(whole.ids[:900]))


def test_growth_chooses_another_structure_of_the_same_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mim_lightning.search.index.faiss_index.FLAT_ROWS", 20)
    monkeypatch.setattr("mim_lightning.search.index.index_type.FLAT_ROWS", 70)
    index, more = make_unit_shop(60).build(tmp_path, IndexSettings(precision="int8", dimension=CUT)), make_unit_shop(30)
    assert index.card.kind == "int8_flat" and index.card.full_recall is not None
    index.add(more.vectors, [f"new{product_id}" for product_id in more.ids], renamed(more))
    index.save()
    card = open_index(tmp_path).card
    assert (card.kind, card.full_recall, card.num_products) == ("int8_hnsw", None, 90), "not of the former index"


def renamed(shop: Shop) -> pa.Table:
    return pa.Table.from_pylist([{**one, "product_id": f"new{one['product_id']}"} for one in shop.records.values()])


def test_a_filter_widens_the_search_of_bits_once(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"nlist": 40, "nprobe": 4, "rerank": 10, "min_recall": 0}
    index = shop.build(tmp_path, IndexSettings(kind="ivf", precision="binary", **options))
    searched: list[int] = []

    def spy(*arguments: Any) -> Any:
        searched.append((found := search_parameters(*arguments)).nprobe)
        return found

    monkeypatch.setattr("mim_lightning.search.index.segment.search_parameters", spy)
    index.search(unit(2, 9), 5, {"category": "Milk"})
    # 10 candidates of each of 11 rows; a third of the rows is allowed, and twice as many are read
    assert searched[0] == math.ceil(2 * 110 * 3 / 1500 * 40)


def test_8_bit_vectors_are_compared_row_by_row_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).standard_normal((100, 96)).astype(np.float32)
    small, queries = Int8Vectors(encode_int8(vectors)), vectors[:3]
    rows = np.tile(np.arange(-1, 99), (3, 1))
    expected = compute_scores(queries, np.asarray(small), rows)
    sizes: list[int] = []
    decode = Int8Vectors.__getitem__
    monkeypatch.setattr(Int8Vectors, "__getitem__", lambda self, rows: sizes.append(len(rows)) or decode(self, rows))
    monkeypatch.setattr("mim_lightning.search.index.product_ranking._DECODED_ROWS", 32)
    assert (compute_scores(queries, small, rows) == expected).all() and max(sizes) == 32
    assert (compute_scores(queries[:1], small, rows[:1, 7:8]) == expected[:1, 7:8]).all()


def test_a_large_catalog_is_cut_into_a_file_and_compared_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, idx = unit(60, 3), np.arange(60)
    rounded = round_vectors(vectors)
    expected = compute_true_scores(vectors[:5], rounded, idx)
    monkeypatch.setattr("mim_lightning.io.mapped_file.IN_MEMORY", 0)
    monkeypatch.setattr("mim_lightning.search.index.recall._BLOCK_ROWS", 16)
    cut = cut_vectors(vectors, CUT, tmp_path)
    assert isinstance(cut, np.memmap) and (cut == cut_vectors(vectors, CUT)).all() and not [*tmp_path.iterdir()]
    small, sizes, decode = Int8Vectors(encode_int8(vectors)), list[int](), Int8Vectors.__getitem__
    monkeypatch.setattr(Int8Vectors, "__array__", None)
    monkeypatch.setattr(Int8Vectors, "__getitem__", lambda self, rows: sizes.append(1) or decode(self, rows))
    assert (compute_true_scores(vectors[:5], small, idx) == expected).all() and len(sizes) >= 4
    files: list[Path | None] = []

    def spy(vectors: np.ndarray, dimension: int, folder: Path | None = None) -> np.ndarray:
        files.append(folder)
        return cut_vectors(vectors, dimension, folder)

    monkeypatch.setattr("mim_lightning.search.index.factory.cut_vectors", spy)
    make_unit_shop(30).build(tmp_path / "shop" / "index", IndexSettings(dimension=CUT))
    assert files == [tmp_path], "on the disk of the index"


def test_integers_and_signs_are_those_of_the_definition() -> None:
    vectors = unit(9, 1)
    vectors[4] = 0
    rounded = round_vectors(vectors)
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    assert (np.abs(rounded - vectors) <= largest / 127 / 2 + 1e-7).all() and not rounded[4].any()
    np.testing.assert_allclose(round_vectors(rounded), rounded, rtol=1e-6)
    bits = [
        [int(byte[number // 8] >> (7 - number % 8) & 1) for number in range(WIDTH)] for byte in encode_signs(vectors)
    ]
    assert bits == (vectors > 0).astype(int).tolist()
    np.testing.assert_allclose(cut_vectors(vectors, CUT)[:4], naive_cut(vectors)[:4], atol=1e-7)


def test_an_index_of_whole_vectors_says_so_and_old_cards_are_read(shop: Shop, tmp_path: Path) -> None:
    card = shop.build(tmp_path, IndexSettings(kind="hnsw", num_threads=1)).card
    assert (card.precision, card.full_dimension, card.full_recall) == ("float32", 0, None)
    path = tmp_path / "card.json"
    content = json.loads(path.read_text())
    for name in ("full_dimension", "full_recall", "memory_bytes_per_row", "disk_bytes_per_row"):
        del content[name]
    for name in ("dimension", "precision", "rescore"):
        del content["settings"][name]
    path.write_text(json.dumps(content))
    index = open_index(tmp_path)
    assert index.search(shop.vectors[:3], 1).product_ids[:, 0].tolist() == shop.ids[:3]
    assert index.card.precision == "float32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimension": 21}, r"^dimension=21: give a whole number from 1 to 20, or null for all"),
        ({"dimension": 0}, r"^dimension=0: give a whole number from 1 to 20"),
        ({"precision": "int4"}, r"^precision=int4: choose from float32, int8, binary"),
        ({"rescore": "binary"}, r"^index\.rescore=binary: choose from float32, int8"),
        ({"precision": "binary", "kind": "hnsw"}, r"^index\.kind=hnsw: precision=binary has auto, flat, ivf"),
        ({"kind": "ivf"}, r"^index\.kind=ivf: precision=float32 has auto, flat, hnsw, ivf_pq, sq8"),
    ],
)
def test_impossible_settings_name_key_and_choices(shop: Shop, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shop.build(tmp_path / "index", IndexSettings(**options))
    assert not (tmp_path / "index").exists()
