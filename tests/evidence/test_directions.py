"""Directions over tables: which vectors, which truth, and what is left out."""

import pytest
import torch

from mim_lightning.evidence.directions import evaluate_directions
from mim_lightning.types import Direction
from tests.evidence.tables import gallery_of, queries_of, unit

FUSIONS = {"query": {"query_image": 1.0, "query_text": 3.0}, "product": {"product_image": 1.0, "product_text": 1.0}}


@pytest.fixture
def tables():
    asked = torch.arange(12) % 5
    queries = queries_of(
        {"query_image": unit(12, 8, 0), "query_text": unit(12, 8, 1)}, asked=asked, shown=(asked + 1) % 5
    )
    queries.vectors["query_text"][3] = 0
    queries.present["query_text"][3] = False
    gallery = gallery_of({"product_image": unit(5, 8, 2), "product_text": unit(5, 8, 3)}, torch.arange(5))
    return queries, gallery


def naive_hit(query, gallery, truth) -> float:
    best = [max(range(len(gallery)), key=lambda p, q=q: float(q @ gallery[p])) for q in query]
    return sum(int(b) == int(t) for b, t in zip(best, truth, strict=True)) / len(truth)


def test_each_direction_uses_its_sides_and_its_truth(tables) -> None:
    queries, gallery = tables
    directions = {
        "image_to_image": Direction("query_image", "product_image"),
        "image_to_asked": Direction("query_image", "product_image", "asked"),
        "composed": Direction("query", "product"),
        "text": Direction("query_text", "product_text"),
    }
    reports = evaluate_directions(directions, queries, gallery, FUSIONS, cutoffs=(1,), depth=5, num_hits=2)
    v, g = queries.vectors, gallery.vectors
    asked, shown = queries.columns["asked_keys"][:, 0], queries.columns["shown_keys"][:, 0]
    has_text = torch.arange(12) != 3
    fused_query, fused_product = v["query_image"] + 3 * v["query_text"], g["product_image"] + g["product_text"]
    fused_product = torch.nn.functional.normalize(fused_product, dim=1)
    expected = {
        "image_to_image": naive_hit(v["query_image"], g["product_image"], shown),
        "image_to_asked": naive_hit(v["query_image"], g["product_image"], asked),
        "composed": naive_hit(fused_query, fused_product, asked),
        "text": naive_hit(v["query_text"][has_text], g["product_text"], asked[has_text]),
    }
    assert {name: report.values["hit@1"] for name, report in reports.items()} == pytest.approx(expected)
    assert reports["text"].num_queries == 11 and reports["composed"].num_queries == 12


def test_a_side_that_nothing_has_is_an_error(tables) -> None:
    queries, gallery = tables
    queries.present["query_text"][:] = False
    with pytest.raises(ValueError, match=r"directions\.text: no validation query has a query_text"):
        evaluate_directions({"text": Direction("query_text", "product_text")}, queries, gallery, FUSIONS)
