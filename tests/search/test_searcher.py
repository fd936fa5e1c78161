"""A search is the exact ranking of the combined query; an index finds its model where its card says it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mim_lightning.model.compatibility import CrossResult
from mim_lightning.model.fusion import Fusion
from mim_lightning.search.index.factory import create_index
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import MODEL, Searcher, open_searcher
from tests.search.service.color_shop import ColorModel, color_index

DIMENSION, NUM_PRODUCTS = 16, 40


def unit_rows(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Encoder:
    """Vectors by seed: an image is an int, a text gives its length."""

    fingerprint = "f00d"
    reads_together = False

    def __init__(self, fusions: Mapping[str, dict[str, float]] | None = None) -> None:
        self.fusions = dict(fusions or {})

    def embed_parts(
        self, images: Sequence[int], texts: Sequence[str], towers: Sequence[str | None]
    ) -> tuple[np.ndarray, np.ndarray]:
        seeds = [*images], [1000 + len(text) for text in texts]
        both = [[np.zeros((0, DIMENSION)), *(unit_rows(1, seed) for seed in part)] for part in seeds]
        return np.concatenate(both[0]), np.concatenate(both[1])


@pytest.fixture
def vectors() -> np.ndarray:
    return unit_rows(NUM_PRODUCTS, 99)


@pytest.fixture
def index(vectors: np.ndarray, tmp_path: Path) -> Any:
    ids = [f"p{number:02d}" for number in range(NUM_PRODUCTS)]
    products = pa.table({"product_id": ids, "title": [f"title {i}" for i in ids], "category": ["even", "odd"] * 20})
    return create_index(vectors, ids, products, IndexSettings(kind="flat"), ModelFacts("f00d", "product", 16), tmp_path)


def ranked(vectors: np.ndarray, query: np.ndarray) -> list[str]:
    return [f"p{number:02d}" for number in np.argsort(-(vectors @ query), kind="stable")]


def test_image_and_text_are_fused_as_the_model_does(index: Any, vectors: np.ndarray) -> None:
    encoder = Encoder({"query": {"query_image": 1.0, "query_text": 0.25}})
    result = Searcher(encoder, index).search(SearchQuery(images=(7,), text="red"))
    query = unit_rows(1, 7)[0] + 0.25 * unit_rows(1, 1003)[0]
    assert [hit.product_id for hit in result.hits] == ranked(vectors, query)[:10]
    best = result.hits[0]
    row = vectors[int(best.product_id[1:])]
    assert best.score == pytest.approx(float(query @ row / np.linalg.norm(query)), abs=1e-5)
    assert set(best.parts) == {"image", "text"} and sum(best.parts.values()) == pytest.approx(best.score, abs=1e-5)
    assert best.metadata["title"] == f"title {best.product_id}"


def test_weights_of_the_query_win(index: Any, vectors: np.ndarray) -> None:
    searcher = Searcher(Encoder(), index, weights={"text": 3.0})
    for weights, share in (({}, 3.0), ({"text": 0.1}, 0.1)):
        hits = searcher.search(SearchQuery(images=(7,), text="red", weights=weights)).hits
        query = unit_rows(1, 7)[0] + share * unit_rows(1, 1003)[0]
        assert [hit.product_id for hit in hits] == ranked(vectors, query)[:10]


def test_negative_text_is_subtracted(index: Any, vectors: np.ndarray) -> None:
    hits = Searcher(Encoder(), index).search(SearchQuery(text="red", not_text="shiny", num_hits=5)).hits
    query = unit_rows(1, 1003)[0] - 0.5 * unit_rows(1, 1005)[0]
    assert [hit.product_id for hit in hits] == ranked(vectors, query)[:5]


def test_several_photos_are_averaged(index: Any, vectors: np.ndarray) -> None:
    hits = Searcher(Encoder(), index).search(SearchQuery(images=(1, 2, 3))).hits
    query = sum(unit_rows(1, image)[0] for image in (1, 2, 3))
    assert [hit.product_id for hit in hits] == ranked(vectors, query)[:10]


def test_more_like_this_leaves_the_product_itself_out(index: Any, vectors: np.ndarray) -> None:
    hits = Searcher(Encoder(), index).search(SearchQuery(like="p05", num_hits=39)).hits
    assert [hit.product_id for hit in hits] == [i for i in ranked(vectors, vectors[5]) if i != "p05"]


def test_filters_reach_the_index(index: Any, vectors: np.ndarray) -> None:
    hits = Searcher(Encoder(), index).search(SearchQuery(images=(7,), where={"category": "odd"})).hits
    wanted = [i for i in ranked(vectors, unit_rows(1, 7)[0]) if int(i[1:]) % 2]
    assert [hit.product_id for hit in hits] == wanted[:10]


def test_another_models_index_is_refused(index: Any) -> None:
    encoder = Encoder()
    encoder.fingerprint = "beef"
    with pytest.raises(ValueError, match="built with model f00d, this is beef"):
        Searcher(encoder, index)


def test_another_models_index_is_searched_as_it_was_measured(vectors: np.ndarray, tmp_path: Path) -> None:
    measured = CrossResult("d", "query", "product", "hit@1", 0.5, 0.4, 0.0, 0.2, 50, "shop", "val")
    ids, galleries = [f"p{number:02d}" for number in range(NUM_PRODUCTS)], {"f00d": (measured,)}

    def open_index(encoder: Encoder, extra: dict[str, Any], **settings: Any) -> Searcher:
        encoder.fingerprint = "beef"
        facts = ModelFacts("f00d", "product", 16)
        index = create_index(vectors, ids, pa.table({"product_id": ids}), IndexSettings(**settings), facts, tmp_path)
        index.add(vectors[:1], ["p00"], pa.table({"product_id": ["p00"]}), extra)
        return Searcher(encoder, index, galleries=galleries)

    weights = {"product_image": 1.0, "product_text": 1.0}
    of_new = {"product": Fusion("product", {**weights, "kind": "standardized_sum"}, 16)}
    assert open_index(Encoder(of_new), {}).combined is None, "its fusion of products is not the former one"
    with pytest.raises(ValueError, match="has 6 of its 16 dimensions, but this model, beef, was measured in all"):
        open_index(Encoder(), {}, dimension=6)
    with pytest.raises(ValueError, match="standardized_sum or score_product ranks only in an index of its own model"):
        open_index(Encoder(), {"reference_products": ids[:3]})


def test_an_unknown_clicked_product(index: Any) -> None:
    with pytest.raises(ValueError, match="p99"):
        Searcher(Encoder(), index).search(SearchQuery(like="p99"))


class LoadedColourModel(ColorModel):
    dimension, galleries = 3, MappingProxyType({})


def test_a_model_on_the_hub_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(path: str, **options: Any) -> LoadedColourModel:
        loaded.append(path)
        return LoadedColourModel()

    monkeypatch.setattr("mim_lightning.search.searcher.load", load)
    place = index_of_model_at("hf://me/colours@v1", tmp_path)
    open_searcher(place)
    assert loaded == ["hf://me/colours@v1"]


def test_a_moved_model_is_an_error(tmp_path: Path) -> None:
    place = index_of_model_at(str(tmp_path / "gone.ckpt"), tmp_path)
    with pytest.raises(ValueError, match=r"its model c010c010c010c010 is not at .*gone\.ckpt; give checkpoint="):
        open_searcher(place)


def index_of_model_at(model: str, folder: Path) -> str:
    index = color_index(folder)
    more = pa.table({"product_id": ["teal-1"], "title": ["teal"], "category": ["cold"], "price": [1.0]})
    index.add(np.eye(3, dtype=np.float32)[:1], ["teal-1"], more, {MODEL: model})
    index.save()
    return str(folder / "index")


def test_a_query_is_cut_as_the_index_was_and_its_parts_still_sum_to_the_score(
    vectors: np.ndarray, tmp_path: Path
) -> None:
    ids = [f"p{number:02d}" for number in range(NUM_PRODUCTS)]
    facts, settings = ModelFacts("f00d", "product", 16), IndexSettings(dimension=6, precision="int8")
    index = create_index(vectors, ids, pa.table({"product_id": ids}), settings, facts, tmp_path)
    searcher = Searcher(Encoder({"query": {"query_image": 1.0, "query_text": 0.25}}), index)
    rows = vectors[:, :6] / np.linalg.norm(vectors[:, :6], axis=1, keepdims=True)
    whole = unit_rows(1, 7)[0] + 0.25 * unit_rows(1, 1003)[0]
    result = searcher.search(SearchQuery(images=(7,), text="red"))
    assert [hit.product_id for hit in result.hits] == ranked(rows, whole[:6])[:10], "the fused query, cut"
    for hit in result.hits:
        expected = whole[:6] @ rows[int(hit.product_id[1:])] / np.linalg.norm(whole[:6])
        assert hit.score == pytest.approx(float(expected), abs=1e-5)
        assert sum(hit.parts.values()) == pytest.approx(hit.score, abs=1e-5)
    like = searcher.search(SearchQuery(like="p03", text="red", weights={"text": 1.0})).hits
    text = unit_rows(1, 1003)[0][:6]
    both = rows[3] + text / np.linalg.norm(text)
    assert [hit.product_id for hit in like] == [one for one in ranked(rows, both) if one != "p03"][:10]
