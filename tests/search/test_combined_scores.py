"""Every kind of fusion on either side: a search of the index finds what the evaluation of the same catalog ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mim_lightning.metrics import EmbeddingTable
from mim_lightning.metrics.directions import IDS, evaluate_directions
from mim_lightning.model.fusion import Fusion
from mim_lightning.search.combined_scores import REFERENCE, reference_products
from mim_lightning.search.index.factory import create_index
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import Searcher
from mim_lightning.types import Direction, hash_id

D, NUM_QUERIES, NUM_PRODUCTS = 8, 6, 30
IDS_OF_PRODUCTS = [f"p{number:02d}" for number in range(NUM_PRODUCTS)]


def table(side: str, count: int, seed: int, keys: Sequence[int]) -> EmbeddingTable:
    generator = torch.Generator().manual_seed(seed)
    present = {f"{side}_image": torch.ones(count).bool(), f"{side}_text": torch.arange(count) % 5 != 3}
    made = {name: normalize(torch.randn(count, D, generator=generator) + 0.4, dim=-1) for name in present}
    vectors = {name: made[name] * there[:, None] for name, there in present.items()}
    own, products = torch.arange(count), torch.tensor(keys)
    values = (own, products, products[:, None], torch.ones(count, 1, dtype=torch.int64), products[:, None], own * 0)
    return EmbeddingTable(own, vectors, present, dict(zip(IDS, values, strict=True)))


class Encoder:
    """Gives the vectors of the query table: an image is its row, a text names it."""

    fingerprint, reads_together = "f00d", False

    def __init__(self, fusions: Mapping[str, Fusion], queries: EmbeddingTable) -> None:
        self.fusions, self.queries = fusions, queries

    def embed_parts(
        self, images: Sequence[int], texts: Sequence[str], towers: Sequence[str | None]
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = list(images), [int(text) for text in texts]
        return tuple(
            self.queries.vectors[name][part].numpy() for name, part in zip(self.queries.vectors, rows, strict=True)
        )


def fusion(side: str, options: Mapping[str, Any]) -> Fusion:
    torch.manual_seed(3)
    made = Fusion(side, {f"{side}_image": 1.0, f"{side}_text": 0.6, **options}, D).eval().requires_grad_(False)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def rows_of(made: Fusion, of: EmbeddingTable) -> Tensor:
    return made(of.vectors, of.present) if made.needs_one_vector else made.stack_parts(of.vectors, of.present)


SUM, PRODUCT = {"kind": "standardized_sum"}, {"kind": "score_product", "floor": 2.5}


@pytest.mark.parametrize(
    ("asked", "offered"),
    [
        ({}, {}),
        ({"kind": "gate"}, {"kind": "learned_sum"}),
        ({"kind": "gate", "center": "measured"}, {"kind": "gate", "hidden_width": 0}),
        ({"center": "running"}, {"center": "running"}),
        (SUM, {}),
        ({"kind": "gate"}, SUM),
        (SUM, SUM),
        (PRODUCT, {"center": "measured"}),
        ({"kind": "learned_sum"}, PRODUCT),
        ({**PRODUCT, "center": "running"}, PRODUCT),
        ({"kind": "score_product", "floor": None}, {"kind": "learned_sum"}),
        ({"kind": "learned_sum"}, {"kind": "score_product", "floor": None}),
    ],
    ids=str,
)
def test_a_search_gives_the_scores_of_the_evaluation(
    asked: dict[str, Any], offered: dict[str, Any], tmp_path: Path
) -> None:
    keys = [hash_id(product_id) for product_id in IDS_OF_PRODUCTS]
    queries, gallery = table("query", NUM_QUERIES, 1, keys[:NUM_QUERIES]), table("product", NUM_PRODUCTS, 2, keys)
    fusions = {"query": fusion("query", asked), "product": fusion("product", offered)}
    for side, of in (("query", queries), ("product", gallery)):
        if fusions[side].center:
            fusions[side].set_means({part: vectors[of.present[part]].mean(0) for part, vectors in of.vectors.items()})
    direction = Direction("query", "product", requires=())
    report = evaluate_directions({"d": direction}, queries, gallery, fusions, num_hits=10)["d"]
    ranked = dict(zip(report.hits.query_keys.tolist(), report.hits.product_keys.tolist(), strict=True))

    facts = ModelFacts("f00d", "product", fusions["product"].index_width)
    products = pa.table({"product_id": IDS_OF_PRODUCTS})
    extra = {REFERENCE: reference_products(IDS_OF_PRODUCTS)}
    rows = rows_of(fusions["product"], gallery).numpy()
    index = create_index(rows, IDS_OF_PRODUCTS, products, IndexSettings(kind="flat"), facts, tmp_path, extra)
    searcher = Searcher(Encoder(fusions, queries), index)
    for row in range(NUM_QUERIES):
        has_text = bool(queries.present["query_text"][row])
        result = searcher.search(SearchQuery(images=(row,), text=str(row) if has_text else None))
        found = [hash_id(hit.product_id) for hit in result.hits if hit.score]  # equal scores of 0 have no order
        assert found == ranked[row][: len(found)]
        scores = report.hits.scores[report.hits.query_keys.tolist().index(row)]
        np.testing.assert_allclose([hit.score for hit in result.hits], scores.numpy(), atol=2e-4)
        combine = np.prod if "score_product" in (asked.get("kind"), offered.get("kind")) else np.sum
        for hit in result.hits:
            assert combine(list(hit.parts.values())) == pytest.approx(hit.score, abs=2e-4)
    assert (result.num_candidates > 0) == any(not side.needs_one_vector for side in fusions.values())
    if searcher.combined is not None:  # each vector of `like` has the length of one of the other parts
        like_JD, text_JD = (
            searcher.encode(SearchQuery(like="p00", text="0")).parts[part][0].reshape(searcher.combined.num_blocks, -1)
            for part in ("like", "text")
        )
        np.testing.assert_allclose(np.linalg.norm(like_JD, axis=1), np.linalg.norm(text_JD, axis=1), rtol=1e-5)
    like = searcher.search(SearchQuery(like="p03", text="0", not_text="1", num_hits=3, where=None)).hits
    assert len(like) == 3 and "p03" not in [hit.product_id for hit in like]


def test_an_index_without_reference_products_is_refused(tmp_path: Path) -> None:
    made = {"query": fusion("query", SUM)}
    rows = normalize(torch.randn(NUM_PRODUCTS, D), dim=-1).numpy()
    products = pa.table({"product_id": IDS_OF_PRODUCTS})
    facts = ModelFacts("f00d", "product", D)
    index = create_index(rows, IDS_OF_PRODUCTS, products, IndexSettings(kind="flat"), facts, tmp_path)
    with pytest.raises(ValueError, match="names no products to standardize scores by; rebuild it"):
        Searcher(Encoder(made, table("query", 2, 1, [1, 2])), index)
