"""A fusion that loses to one of its towers is found, with the key that mends it; one that gains is not."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from mim_lightning.metrics.directions import evaluate_directions
from mim_lightning.metrics.embedding_table import EmbeddingTable
from mim_lightning.metrics.fusion_parts import WeakFusion, find_weak_fusions
from mim_lightning.types import Direction
from tests.search.test_combined_scores import table

DIRECTIONS = {"image_to_text": Direction("query_image", "product_text"), "d": Direction("query_image", "product")}


def tables(noise: float, text_noise: float) -> tuple[EmbeddingTable, EmbeddingTable]:
    """Return queries that look like their products' images, and titles of some use or none."""
    keys = list(range(100, 140))
    queries, gallery = table("query", 40, 1, keys), table("product", 40, 2, keys)
    generator = torch.Generator().manual_seed(3)
    for name, size in (("product_image", noise), ("product_text", text_noise)):
        near = queries.vectors["query_image"] + size * torch.randn(40, 8, generator=generator)
        gallery.vectors[name] = normalize(near, dim=-1)
        gallery.present[name] = torch.ones(40).bool()
    return queries, gallery


def weak(noise: float, text_noise: float, weight: float = 1.0) -> list[str]:
    both = tables(noise, text_noise)
    fusions = {"product": {"product_image": 1.0, "product_text": weight}}
    reports = evaluate_directions(DIRECTIONS, *both, fusions)
    found = find_weak_fusions(DIRECTIONS, reports, *both, fusions, {}, "hit@1", first="image_to_text")
    return [each.describe("hit@1") for each in found]


def test_untrained_titles_are_said_with_the_key_and_a_smaller_weight_mends_it() -> None:
    (sentence,) = weak(noise=0.1, text_noise=3.0)
    assert sentence.startswith("d/hit@1: the fusion 'product' reaches 0.")
    assert "product_image alone" in sentence and "lower the weight model.fusions.product.product_text" in sentence
    assert not weak(noise=0.1, text_noise=3.0, weight=0.01)


@pytest.mark.parametrize(
    ("kind", "others", "has_command"),
    [
        ("fixed_sum", ("b",), True),
        ("score_product", ("b", "c"), False),
        ("gate", ("b",), True),
        ("gate", ("b", "c"), False),
    ],
)
def test_the_advice_is_one_that_works_for_the_kind(kind: str, others: tuple[str, ...], has_command: bool) -> None:
    sentence = WeakFusion("d", "f", 0.5, "a", 0.7, others, kind).describe("hit@1")
    assert ("tune_fusion" in sentence) == has_command  # a sweep needs two towers
    assert ("are learned (kind=gate): with kind=fixed_sum lower the weight model.fusions.f.b" in sentence) == (
        kind == "gate"
    )


def test_a_fusion_of_two_useful_towers_says_nothing() -> None:
    assert not weak(noise=0.3, text_noise=0.3)
