"""A fusion sweep against fusing and ranking by hand; a choice is judged on products it was not made on."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from mim_lightning.analysis.embeddings import EvaluationEmbeddings, read_embeddings, write_embeddings
from mim_lightning.analysis.fusion_sweep import SWEPT_KINDS, choose_ends, sweep_fusion, usable_kinds
from mim_lightning.model.fusion import Fusion, describe_fusions
from mim_lightning.types import Direction
from tests.analysis.tables import gallery_of, queries_of, unit

DIRECTION = Direction("query", "product_image")
FUSIONS = {"query": {"query_image": 1.0, "query_text": 1.0}}
KEYS = torch.arange(40) * 7919 + 13


@pytest.fixture
def embeddings() -> EvaluationEmbeddings:
    """Return queries whose words point to their product, and whose images are noise."""
    products, targets = unit(40, 16, 0), torch.arange(120) % 40
    words = normalize(
        products[targets] + 0.35 * torch.randn(120, 16, generator=torch.Generator().manual_seed(1)), dim=1
    )
    queries = queries_of({"query_image": unit(120, 16, 2), "query_text": words}, targets=KEYS[targets])
    gallery = gallery_of({"product_image": products}, KEYS)
    return EvaluationEmbeddings(queries, gallery, FUSIONS, "0123")


def hits_at(embeddings: EvaluationEmbeddings, share: float) -> torch.Tensor:
    vectors = embeddings.queries.vectors
    fused = share * vectors["query_image"] + (1 - share) * vectors["query_text"]
    found = KEYS[(fused @ embeddings.gallery.vectors["product_image"].T).argmax(dim=1)]
    return (found == embeddings.queries.columns["asked_keys"][:, 0]).double()


def test_every_point_is_a_ranking_with_these_weights(embeddings: EvaluationEmbeddings) -> None:
    curve = sweep_fusion(embeddings, "composed", DIRECTION, "query", num_weights=5)
    assert curve.weights == [0, 0.25, 0.5, 0.75, 1]
    assert curve.values == pytest.approx([float(hits_at(embeddings, share).mean()) for share in curve.weights])
    assert curve.trained_weight == 0.5 and curve.trained_value == pytest.approx(curve.values[2])
    assert curve.best_weight == 0 and curve.best.weights == {"query_image": 0, "query_text": 1}
    assert all(low <= value <= high for value, (low, high) in zip(curve.values, curve.intervals, strict=True))


def test_a_choice_counts_on_the_other_half_of_the_products(embeddings: EvaluationEmbeddings) -> None:
    curve = sweep_fusion(embeddings, "composed", DIRECTION, "query", num_weights=5)
    is_odd = embeddings.queries.columns["asked_keys"][:, 0] % 2 == 1
    hits = {share: hits_at(embeddings, share) for share in curve.weights}
    expected = []
    for half in (is_odd, ~is_odd):
        best = max(curve.weights, key=lambda share, half=half: (float(hits[share][~half].mean()), -abs(share - 0.5)))
        expected.append((hits[best][half] - hits[0.5][half]).sum())
    assert curve.chosen.difference == pytest.approx(float(sum(expected)) / 120)
    assert curve.chosen.low > 0 and curve.chosen.p_value < 0.01


def test_without_an_effect_the_trained_weights_stay(embeddings: EvaluationEmbeddings) -> None:
    embeddings.queries.vectors["query_image"][:] = embeddings.queries.vectors["query_text"]
    curve = sweep_fusion(embeddings, "composed", DIRECTION, "query", num_weights=5)
    assert curve.best_weight == 0.5 and curve.chosen.difference == 0 and curve.chosen.p_value == 1


def test_a_sweep_keeps_the_trained_center_and_floor(embeddings: EvaluationEmbeddings) -> None:
    config = {"query_image": 0.5, "query_text": 0.5, "kind": "score_product", "floor": 1.5, "center": "running"}
    trained = Fusion("query", config, 16)
    trained.set_means({"query_image": unit(1, 16, 5)[0] / 2, "query_text": unit(1, 16, 6)[0] / 2})
    changed = replace(embeddings, fusions={"query": trained})
    curve = sweep_fusion(changed, "composed", DIRECTION, "query", num_weights=3)
    assert curve.values[1] == pytest.approx(curve.trained_value)
    assert curve.label == "score_product, centered as trained"
    assert curve.best.describe() == {**config, **curve.best.weights}
    assert all(torch.equal(curve.best.mean_of(part), trained.mean_of(part)) for part in trained)
    measured = sweep_fusion(changed, "composed", DIRECTION, "query", num_weights=3, is_centered=True).best
    assert measured.center == "measured" and measured.options["floor"] == 1.5
    assert not torch.equal(measured.mean_of("query_text"), trained.mean_of("query_text"))


def test_kinds_are_those_that_the_other_side_allows(embeddings: EvaluationEmbeddings) -> None:
    embeddings.gallery.vectors["product_text"] = embeddings.gallery.vectors["product_image"].clone()
    embeddings.gallery.present["product_text"] = embeddings.gallery.present["product_image"]
    product = {"product_image": 1.0, "product_text": 1.0, "kind": "score_product", "floor": 2.0}
    both = replace(embeddings, fusions={**FUSIONS, "product": product})
    direction = Direction("query", "product")
    assert usable_kinds(both, direction, "query") == ("fixed_sum", "score_product")
    assert usable_kinds(both, direction, "product") == usable_kinds(both, DIRECTION, "query") == SWEPT_KINDS
    best = sweep_fusion(both, "composed", direction, "query", num_weights=3, kind="score_product").best
    assert best.options["floor"] == 2.0


@pytest.mark.parametrize(
    ("fusion", "metric", "words"),
    [
        ("product", "hit@1", "does not use the fusion 'product'"),
        ("query", "hit@3", "no metric 'hit@3' to choose by; there are"),
        ("query", "wrong_category@1", "no metric 'wrong_category@1'"),
    ],
)
def test_mistakes_name_the_choices(embeddings: EvaluationEmbeddings, fusion: str, metric: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sweep_fusion(embeddings, "composed", DIRECTION, fusion, metric)


@pytest.mark.parametrize(
    ("directions", "fusions", "expected"),
    [
        (("image", "words", "both"), ("query", "product"), ("both", "query")),  # a query's fusion before a product's
        (("image", "words"), ("product",), ("words", "product")),  # three towers: only products have one
    ],
)
def test_without_a_direction_the_first_with_a_fusion_is_swept(
    embeddings: EvaluationEmbeddings, directions: tuple[str, ...], fusions: tuple[str, ...], expected: tuple[str, str]
) -> None:
    known = {
        "image": {"query": "query_image", "gallery": "product_image"},
        "words": {"query": "query_image", "gallery": "product"},
        "both": {"query": "query", "gallery": "product"},
    }
    config = {"directions": {name: known[name] for name in directions} | {"taken_away": None}}
    facts = SimpleNamespace(config=config, monitored=SimpleNamespace(direction="image"))
    record: Any = SimpleNamespace(facts=facts, directions=dict.fromkeys(directions), folder=Path("run"))
    fused = replace(embeddings, fusions=dict.fromkeys(fusions))
    name, ends, fusion = choose_ends(record, fused, None, None)
    assert (name, fusion) == expected and ends == Direction(**known[name])


def test_embeddings_come_back_from_the_file(embeddings: EvaluationEmbeddings, tmp_path: Path) -> None:
    write_embeddings(tmp_path, embeddings)
    found = read_embeddings(tmp_path)
    assert describe_fusions(found.fusions) == FUSIONS and found.fingerprint == "0123"
    for side in ("queries", "gallery"):
        ours, theirs = getattr(embeddings, side), getattr(found, side)
        assert torch.equal(ours.row_keys, theirs.row_keys)
        for part in ("vectors", "present", "columns"):
            left, right = getattr(ours, part), getattr(theirs, part)
            assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "embeddings.safetensors").write_bytes(b"not this")
    with pytest.raises(ValueError, match=r"embeddings\.safetensors: damaged"):
        read_embeddings(tmp_path / "damaged")
