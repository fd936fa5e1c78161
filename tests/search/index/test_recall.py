"""The search effort is raised until the required recall is reached, up to a limit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mim_lightning.search.index.index_settings import IndexSettings
from mim_lightning.search.index.index_type import scale_effort
from mim_lightning.search.index.products import IndexRows, type_products
from mim_lightning.search.index.recall import EXACT, FindScores, describe_effort, tune_effort, validate_recall

NUM_ROWS = 40


@pytest.fixture
def rows() -> IndexRows:
    vectors = np.random.default_rng(0).normal(size=(NUM_ROWS, 8)).astype(np.float32)
    products = type_products(pa.table({"product_id": [f"p{number:02d}" for number in range(NUM_ROWS)]}))
    return IndexRows(vectors, np.arange(NUM_ROWS, dtype=np.int32), products)


def finder(rows: IndexRows, least_effort: int, asked: list[int]):
    """Return searches that find everything from some `ef_search` on, and half of it below."""

    def search_with(settings: IndexSettings) -> FindScores:
        asked.append(settings.ef_search)

        def find(query_QD: np.ndarray, k: int) -> np.ndarray:
            scores = -np.sort(-(query_QD @ rows.vectors.T), axis=1)[:, :k]
            if settings.ef_search < least_effort:
                scores[:, k // 2 :] = -np.inf
            return scores

        return find

    return search_with


@pytest.mark.parametrize(("least_effort", "tried"), [(1, [3]), (10, [3, 6, 12]), (10**6, [3, 6, 12, 24, 48])])
def test_effort_doubles_until_it_is_enough_or_no_longer_worth_it(
    rows: IndexRows, least_effort: int, tried: list[int]
) -> None:
    settings, asked = IndexSettings(kind="hnsw", ef_search=3, recall_queries=20), []
    used, recall = tune_effort("hnsw", rows, settings, None, finder(rows, least_effort, asked))
    assert asked == tried and used.ef_search == tried[-1]
    assert recall.value == (0.5 if least_effort == 10**6 else 1.0)
    assert (scale_effort("hnsw", used, NUM_ROWS) is None) == (least_effort == 10**6)
    expected = f"; index.ef_search raised from 3 to {tried[-1]} for recall" if len(tried) > 1 else ""
    assert describe_effort(settings, used) == expected


def test_exact_indexes_are_not_measured(rows: IndexRows) -> None:
    asked: list[int] = []
    settings = IndexSettings()
    assert tune_effort("flat", rows, settings, None, finder(rows, 1, asked)) == (settings, EXACT)
    assert not asked
    validate_recall(EXACT, IndexSettings(min_recall=1.0), "flat")


@pytest.mark.parametrize(
    ("kind", "keys"),
    {
        "hnsw": "index.hnsw_m or index.ef_construction",
        "int8_hnsw": "index.hnsw_m or index.ef_construction or index.rerank",
        "ivf_pq": "index.pq_m or index.rerank",
        "sq8": "index.rerank",
        "int8_flat": "index.rerank",
        "binary_flat": "index.rerank or dimension",
        "binary_ivf": "index.rerank or dimension",
    }.items(),
)
def test_too_low_a_recall_names_what_the_kind_reads(kind: str, keys: str) -> None:
    with pytest.raises(ValueError, match=f"raise {keys}, or choose another kind"):
        validate_recall(replace(EXACT, value=0.5), IndexSettings(), kind)
