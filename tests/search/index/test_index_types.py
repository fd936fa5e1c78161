"""Types of FAISS index: which is chosen, the recall of each, and additions and deletions."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from mim_lightning.search.index import faiss_index, faiss_types, segment
from mim_lightning.search.index.card import COST, COST_NUMBERS
from mim_lightning.search.index.factory import open_index
from mim_lightning.search.index.index_settings import IndexSettings
from mim_lightning.search.index.index_type import bytes_per_row, choose_kind, num_code_bytes
from mim_lightning.search.index.recall import compute_true_scores, make_queries, measure_recall
from tests.search.index.catalog import Answer, Shop, as_lists, make_shop

APPROXIMATE = ("hnsw", "sq8", "ivf_pq")


def clustered(num_rows: int, num_products: int, spread: float = 0.5, dimension: int = 32) -> Shop:
    """Return a shop of unit vectors around twenty centers; `spread` is that of a cluster, their own is 1."""
    generator = np.random.default_rng(0)
    shop = make_shop(num_rows, num_products)
    vectors = generator.normal(size=(20, dimension))[generator.integers(20, size=num_rows)]
    vectors = vectors + spread * generator.normal(size=vectors.shape)
    shop.vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return shop


def queries_for(shop: Shop, number: int = 20) -> np.ndarray:
    return make_queries(shop.vectors, IndexSettings(recall_queries=number))[0]


def share_found(found: Answer, truth: Answer) -> float:
    hits = [len({i for i, _ in a} & {i for i, _ in b}) / max(1, len(b)) for a, b in zip(found, truth, strict=True)]
    return float(np.mean(hits))


@pytest.mark.parametrize(
    ("num_rows", "kind", "why"),
    [
        (20_000, "flat", "flat: 20,000 rows; up to 20,000 rows are searched exactly"),
        (20_001, "hnsw", r"hnsw: 20,001 rows, more than 20,000; graph and vectors take 0\.0 GiB, limit 8 GiB"),
        (8_000_000, "sq8", r"sq8: 8,000,000 rows; a graph would take 9\.7 GiB, 8-bit codes take 2\.0 GiB"),
        (
            200_000_000,
            "ivf_pq",
            r"ivf_pq: 200,000,000 rows; 8-bit codes would take 49\.2 GiB, product codes take 13\.4 GiB",
        ),
    ],
)
def test_the_number_of_rows_chooses_the_index_type(num_rows: int, kind: str, why: str) -> None:
    found, reason = choose_kind(IndexSettings(), num_rows, 256)
    assert found == kind
    assert re.match(why, reason)
    assert choose_kind(IndexSettings(kind="sq8"), num_rows, 256) == ("sq8", "sq8: set by index.kind")


@pytest.mark.parametrize("kind", ["flat", *APPROXIMATE])
def test_an_index_type_takes_the_memory_that_is_reported(kind: str) -> None:
    """Bytes a row, less what does not grow with the rows, are those of the stored index."""
    settings, dimension = IndexSettings(nlist=8, num_threads=1), 32
    vectors = np.random.default_rng(0).normal(size=(4000, dimension)).astype(np.float32)
    sizes = [
        len(faiss.serialize_index(faiss_types.fill_index(kind, part, settings))) for part in (vectors[:2000], vectors)
    ]
    assert (sizes[1] - sizes[0]) / 2000 == pytest.approx(bytes_per_row(kind, settings, dimension), rel=0.03)


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("num_products", [1500, 400])
def test_approximate_types_find_almost_all(tmp_path: Path, kind: str, num_products: int) -> None:
    shop = clustered(1500, num_products)
    index = shop.build(tmp_path, IndexSettings(kind=kind, min_recall=0.97, recall_queries=60, num_threads=1))
    queries = queries_for(shop)
    found, truth = as_lists(index.search(queries, 5)), shop.answer(queries, 5)
    assert share_found(found, truth) >= 0.97
    for hits, right in zip(found, map(dict, truth), strict=True):
        assert all(score == pytest.approx(right.get(hit, score), abs=1e-6) for hit, score in hits)
    assert index.card.recall.value >= 0.97 and index.card.recall.k == 10
    assert open_index(tmp_path).search(queries, 5).product_ids.tolist() == index.search(queries, 5).product_ids.tolist()


@pytest.mark.parametrize("kind", ["flat", *APPROXIMATE])
@pytest.mark.parametrize("gain", [0.0, 1e9], ids=["selector", "one by one"])
def test_narrow_filters_lose_nothing(tmp_path: Path, kind: str, gain: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One product in three, in twenty, in a hundred: by the index itself as well as by comparing what is allowed."""
    monkeypatch.setattr(segment, "_EXACT_GAIN", gain)
    shop = clustered(1500, 1500, spread=3)
    settings = IndexSettings(kind=kind, min_recall=0.98, ef_search=16, nprobe=4, nlist=60, rerank=5, recall_queries=60)
    index, queries = shop.build(tmp_path, settings), queries_for(shop)
    for where, allows in (
        ({"category": "Milk"}, lambda r: r["category"] == "Milk"),
        ({"price": {"max": 40}}, lambda r: bool(r["price"]) and float(r["price"]) <= 40),
        ({"price": {"max": 8}}, lambda r: bool(r["price"]) and float(r["price"]) <= 8),
    ):
        found = as_lists(index.search(queries, 3, where))
        assert share_found(found, shop.answer(queries, 3, allows)) >= (1 if gain or kind == "flat" else 0.97)


@pytest.mark.parametrize(
    ("num_allowed", "num_fetched", "nprobe", "ef"),
    [(1000, 5, 4, 20), (100, 5, 40, 200), (10, 5, 100, 2000), (1000, 40, 8, 40), (100, 40, 80, 200)],
)
def test_search_is_wider_the_less_there_is_to_find(num_allowed: int, num_fetched: int, nprobe: int, ef: int) -> None:
    """By the inverse of the share that is allowed, and so that lists hold twice the rows that are fetched."""
    settings = IndexSettings(nprobe=4, nlist=100, ef_search=20)
    for kind in ("sq8", "ivf_pq"):
        asked = faiss_types.search_parameters(kind, settings, 1000, num_allowed, num_fetched, None)
        assert asked.nprobe == nprobe
    assert faiss_types.search_parameters("hnsw", settings, 1000, num_allowed, num_fetched, None).efSearch == ef


def test_few_allowed_rows_are_compared_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = clustered(1500, 1500)
    index, queries = shop.build(tmp_path, IndexSettings(kind="hnsw", ef_search=8)), queries_for(shop, 3)
    asked = []
    monkeypatch.setattr(
        segment, "search_parameters", lambda *args: asked.append(args) or faiss_types.search_parameters(*args)
    )
    index.search(queries, 3, {"price": {"max": 8}})
    assert not asked
    index.search(queries, 3, {"price": {"min": 3}})
    assert asked


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_effort_is_raised_to_reach_the_recall(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture) -> None:
    shop = clustered(1500, 1500, spread=3)
    settings = IndexSettings(kind=kind, min_recall=0.99, ef_search=1, nprobe=1, nlist=30, rerank=3, recall_queries=60)
    index = shop.build(tmp_path, settings)
    key = "ef_search" if kind == "hnsw" else "nprobe"
    assert index.card.recall.value >= 0.99 and index.card.settings[key] > 1
    assert f"index.{key} raised from 1 to {index.card.settings[key]}" in index.card.why
    assert index.card.why in capsys.readouterr().out
    for k in (1, 5, 20):
        found = open_index(tmp_path).search(queries_for(shop), k)
        assert share_found(as_lists(found), shop.answer(queries_for(shop), k)) > 0.97


def test_too_few_rows_for_an_index_type_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"index\.kind=ivf_pq: needs at least 256 rows, there are 90; choose flat"):
        clustered(90, 90).build(tmp_path, IndexSettings(kind="ivf_pq"))
    with pytest.raises(ValueError, match=r"index\.pq_m=5: must divide the dimension, 32"):
        clustered(300, 300).build(tmp_path, IndexSettings(kind="ivf_pq", pq_m=5))
    assert num_code_bytes(IndexSettings(), 256) == 64 and num_code_bytes(IndexSettings(), 7) == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kind", "hnws", "index.kind=hnws: choose from auto, flat, hnsw, ivf, ivf_pq, sq8"),
        ("min_recall", 1.5, "index.min_recall=1.5: must be between 0 and 1"),
        ("ef_search", 0, "index.ef_search=0: must be an integer, at least 1"),
        ("nlist", 1.5, "index.nlist=1.5"),
    ],
)
def test_invalid_settings_name_their_key(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IndexSettings(**{key: value})


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_a_mostly_deleted_index_is_rebuilt(tmp_path: Path, kind: str) -> None:
    shop = clustered(900, 900)
    index = shop.build(tmp_path, IndexSettings(kind=kind, recall_queries=60, num_threads=1))
    gone = sorted(shop.records)
    index.delete(gone[:440])
    assert index.card.num_deleted == 440
    index.delete(gone[440:600])
    assert (index.card.num_deleted, index.card.num_rows, index.card.kind) == (0, 300, kind)
    index.set_extra({COST: {"direction": "image", "num_rows": 900, **dict.fromkeys(COST_NUMBERS, 0.5)}})
    index.save()
    left, queries = shop.without(gone[:600]), queries_for(shop)
    found = open_index(tmp_path, verify=True).search(queries, 5)
    assert share_found(as_lists(found), left.answer(queries, 5)) >= 0.95
    index.delete(gone[600:899])
    assert (index.card.num_rows, index.card.kind) == (1, kind if kind == "hnsw" else index.card.kind)
    assert (COST in index.card.extra) == (index.card.kind == kind), "another kind costs something else"
    assert index.search(queries, 2).product_ids[:, 0].tolist() == [gone[899]] * len(queries)


@pytest.mark.parametrize("kind", ["flat", *APPROXIMATE])
@pytest.mark.parametrize("is_saved", [True, False])
def test_many_fresh_rows_join_the_index(
    tmp_path: Path, kind: str, is_saved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_index, "FLAT_ROWS", 50)
    shop, more = clustered(900, 900), clustered(1100, 1100)
    more = more.without(sorted(shop.records)[:860])
    index = shop.build(tmp_path, IndexSettings(kind=kind, recall_queries=60, num_threads=1))
    index.delete(["p001", "p870"])
    for start in range(0, len(more.ids), 30):
        part = more.without([i for n, i in enumerate(more.ids) if not start <= n < start + 30])
        index.add(part.vectors, part.ids, part.table)
        if is_saved:
            index.save()
    whole, queries = shop.without(["p001", "p870"]).updated(more), queries_for(more)
    assert len(index._segments[0].vectors) > 900 and index.card.num_products == len(whole.records)
    assert share_found(as_lists(index.search(queries, 5)), whole.answer(queries, 5)) >= 0.95
    index.save()
    assert share_found(as_lists(open_index(tmp_path).search(queries, 5)), whole.answer(queries, 5)) >= 0.95


def test_recall_counts_what_scores_no_less_than_the_last_true_one() -> None:
    vectors = np.eye(4, dtype=np.float32)
    queries = np.array([[1, 0.5, 0.5, 0.1]], np.float32)
    true = compute_true_scores(queries, vectors, np.arange(4), 3)
    np.testing.assert_allclose(true, [[1, 0.5, 0.5]])
    for found, value in (([1, 0.5, 0.5], 1), ([1, 0.5, 0.1], 2 / 3), ([0.1, -np.inf, -np.inf], 0)):
        recall = measure_recall(
            queries, "by hand", true, lambda _, k, found=found: np.array([found], np.float32)[:, :k]
        )
        assert recall.value == pytest.approx(value) and (recall.k, recall.num_queries, recall.how) == (3, 1, "by hand")


def test_recall_is_measured_with_given_queries(tmp_path: Path) -> None:
    shop = clustered(900, 300)
    queries = np.random.default_rng(1).normal(size=(70, 32)).astype(np.float32)
    index = shop.build(tmp_path, IndexSettings(kind="hnsw", recall_queries=50), query_vectors_QD=queries)
    assert (index.card.recall.num_queries, index.card.recall.how) == (50, "50 of 70 given queries")


def test_true_scores_are_those_of_distinct_products() -> None:
    shop = clustered(300, 40)
    idx = np.array([int(product_id[1:]) for product_id in shop.ids])
    truth = [[score for _, score in hits] for hits in shop.answer(queries_for(shop), 10)]
    np.testing.assert_allclose(compute_true_scores(queries_for(shop), shop.vectors, idx), truth, rtol=1e-5)


def test_a_graph_built_by_one_thread_is_reproducible(tmp_path: Path) -> None:
    shop, settings = clustered(500, 500), IndexSettings(kind="hnsw", num_threads=1, recall_queries=10)
    files = [shop.build(tmp_path / name, settings).card.files["main_index"].crc32 for name in "ab"]
    other = shop.build(tmp_path / "c", replace(settings, seed=1)).card.files["main_index"].crc32
    assert files[0] == files[1] != other


def test_a_gpu_searches_what_is_not_filtered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With FAISS's GPU functions stood in for: coarse and flat kinds are copied there, filtered searches are not."""
    shop = clustered(900, 900)
    index, queries = shop.build(tmp_path, IndexSettings(kind="sq8", recall_queries=20)), queries_for(shop, 2)
    expected, searched = index.search(queries, 3), []

    class OnGpu:
        def __init__(self, index: faiss.Index) -> None:
            self.index = index

        def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            searched.append(k)
            return self.index.search(queries, k)

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", OnGpu, raising=False)
    index = open_index(tmp_path)
    assert index.search(queries, 3).product_ids.tolist() == expected.product_ids.tolist() and searched == [110]
    index.search(queries, 3, {"price": {"min": 1}})
    assert searched == [110]
    assert faiss_types.copy_to_gpu("hnsw", None) is None
