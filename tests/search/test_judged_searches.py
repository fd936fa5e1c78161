"""Hits of queries are judged by the products that answer them, of the kind of query."""

import numpy as np
import pytest

from mim_lightning.inference.image_inputs import ImageInputError
from mim_lightning.search.judged_searches import judge_searches
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import SearchHit, SearchResult
from mim_lightning.types import Sample

CATALOG = ("a", "b", "c", "d")


class Index:
    def products(self, product_ids: list[str]) -> list[dict]:
        if not set(product_ids) <= set(CATALOG):
            raise ValueError("no such product")
        return [{}]


class InOrder:
    """Finds the catalog in its order, with scores 1, 0.9 ...; a broken image is refused."""

    index = Index()

    def search(self, query: SearchQuery) -> SearchResult:
        if query.images == (b"broken",):
            raise ImageInputError(0, "damaged")
        found = CATALOG[: query.num_hits]
        return SearchResult(tuple(SearchHit(name, 1 - idx / 10, {}, {}) for idx, name in enumerate(found)), 0, 0)


def sample(image: bytes | None, text: str | None, targets: str, references: str = "") -> Sample:
    inputs = {name: value for name, value in {"query_image": image, "query_text": text}.items() if value}
    return Sample(0, inputs, target_ids=tuple(targets), reference_ids=tuple(references))


def test_each_kind_has_its_queries_and_answers() -> None:
    samples = [
        sample(b"photo", "in blue", "b", "a"),  # the photo shows a, the words ask for b
        sample(b"photo", None, "cd"),
        sample(b"broken", "mug", "a"),
        sample(None, "red mug", "x"),  # not in the index
    ]
    ticks: list[int] = []
    image = judge_searches(InOrder(), samples, "image", 2, lambda: ticks.append(1))  # type: ignore[arg-type]
    assert len(ticks) == 4
    np.testing.assert_allclose(image.scores, [[1, 0.9], [1, 0.9]])
    assert image.is_right.tolist() == [[True, False], [False, False]]
    assert image.best_wrong.tolist() == pytest.approx([0.9, 1.0])
    assert image.is_answerable.tolist() == [True, True]  # c and d come after the two hits that count
    composed = judge_searches(InOrder(), samples, "composed", 2)  # type: ignore[arg-type]
    assert composed.is_right.tolist() == [[False, True]]
    text = judge_searches(InOrder(), samples, "text", 2)  # type: ignore[arg-type]
    assert text.is_right.tolist() == [[False, True], [True, False], [False, False]]
    assert text.is_answerable.tolist() == [True, True, False]
    assert len(judge_searches(InOrder(), samples[1:2], "composed", 3).scores) == 0  # type: ignore[arg-type]
