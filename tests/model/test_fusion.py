"""Each kind of fusion against its formula written out, with rows that lack a tower."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mim_lightning.model.fusion import FIXED_SUM, KINDS, Fusion, fuse
from mim_lightning.model.score_combination import ScoreCombination, combination_of
from mim_lightning.types import Embeddings

D = 8
PARTS = {"product_image": 1.0, "product_text": 3.0}
PRESENT = {
    "product_image": torch.tensor([True, True, False, False, True]),
    "product_text": torch.tensor([True, False, True, False, True]),
}


def made(seed: int = 0) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    vectors = {
        name: normalize(torch.randn(5, D, generator=generator), dim=-1) * there[:, None]
        for name, there in PRESENT.items()
    }
    return Embeddings(vectors, PRESENT)


def fusion_of(**options: Any) -> Fusion:
    torch.manual_seed(1)
    return Fusion("product", {**PARTS, **options}, D)


def stirred(fusion: Fusion) -> Fusion:
    """Give random values to what is learned: in the beginning every kind is the fixed sum."""
    generator = torch.Generator().manual_seed(2)
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, generator=generator)
    return fusion


def test_a_config_of_weights_alone_is_the_former_fixed_sum_bit_for_bit() -> None:
    embeddings = made()
    v = embeddings.vectors
    former = normalize(sum(weight * v[part] for part, weight in PARTS.items()), dim=-1)
    fused = fuse(embeddings, {"product": PARTS})
    assert torch.equal(fused.vectors["product"], former)
    assert fused.present["product"].tolist() == [True, True, True, False, True]
    assert not fusion_of().state_dict() and fusion_of(kind=FIXED_SUM).describe() == PARTS


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_starts_as_the_sum_and_leaves_a_single_part_as_it_is(kind: str) -> None:
    embeddings = made()
    fused = fusion_of(kind=kind)(embeddings.vectors, embeddings.present)
    torch.testing.assert_close(fused, fuse(embeddings, {"product": PARTS}).vectors["product"])
    fused = stirred(fusion_of(kind=kind))(embeddings.vectors, embeddings.present)
    torch.testing.assert_close(fused[1], embeddings.vectors["product_image"][1])
    torch.testing.assert_close(fused[2], embeddings.vectors["product_text"][2])
    assert not fused[3].any()


def test_learned_weights_are_a_softmax_of_what_the_given_ones_start_from() -> None:
    fusion, embeddings = fusion_of(kind="learned_sum"), made()
    assert fusion.weights == pytest.approx(PARTS)
    with torch.no_grad():
        fusion.log_weights["product_text"].zero_()
    assert fusion.weights == pytest.approx({"product_image": 2.0, "product_text": 2.0})
    v = embeddings.vectors
    torch.testing.assert_close(fusion(v, PRESENT)[0], normalize(v["product_image"][0] + v["product_text"][0], dim=-1))


@pytest.mark.parametrize("hidden", [0, 3])
def test_a_gate_weighs_each_row_by_its_vectors(hidden: int) -> None:
    fusion, embeddings = stirred(fusion_of(kind="gate", hidden_width=hidden)), made()
    v = embeddings.vectors
    state = {name: tensor.double() for name, tensor in fusion.gate.state_dict().items()}
    for row in (0, 1, 2, 4):
        there = [bool(PRESENT[part][row]) for part in PARTS]
        x = torch.cat([v["product_image"][row], v["product_text"][row], torch.tensor(there)]).double()
        for idx in ("0.", "2.") if hidden else ("",):
            x = (x.relu() if idx == "2." else x) @ state[f"{idx}weight"].T + state[f"{idx}bias"]
        scores = [math.exp(float(x[i])) * weight * there[i] for i, weight in enumerate(PARTS.values())]
        total = sum(score / sum(scores) * v[part][row] for score, part in zip(scores, PARTS, strict=True))
        torch.testing.assert_close(fusion(v, PRESENT)[row], normalize(total, dim=-1), atol=1e-5, rtol=1e-5)


def test_a_running_mean_is_of_the_steps_before_and_counts_each_row_once() -> None:
    fusion, first, second = fusion_of(center="running").train(), made(3), made(4)
    torch.testing.assert_close(
        fusion(first.vectors, PRESENT), fuse(first, {"product": PARTS}).vectors["product"]
    )  # nothing known
    fusion.count_rows(first.vectors, PRESENT)
    with torch.no_grad():
        fusion.count_rows(first.vectors, PRESENT)  # a step that is recomputed: its rows have been counted
    sums = fusion.take_pending()
    assert sums is not None and fusion.take_pending() is None
    fusion.update_means(sums)
    means = {part: first.vectors[part][there].mean(0) for part, there in PRESENT.items()}
    for part, mean in means.items():
        torch.testing.assert_close(fusion.mean_of(part), mean)
    centered = {part: normalize(second.vectors[part] - mean, dim=-1) for part, mean in means.items()}
    expected = normalize(sum(PARTS[part] * centered[part] for part in PARTS), dim=-1)
    torch.testing.assert_close(fusion(second.vectors, PRESENT)[0], expected[0])
    torch.testing.assert_close(fusion(second.vectors, PRESENT)[1], centered["product_image"][1])
    again = fusion_of(center="running")
    again.load_state_dict(fusion.state_dict())
    assert torch.equal(again.eval()(second.vectors, PRESENT), fusion.eval()(second.vectors, PRESENT))


def test_a_running_mean_leaves_out_steps_that_are_not_finite_and_moves_as_with_numbers() -> None:
    fusion, generator = fusion_of(center="running"), torch.Generator().manual_seed(0)
    means = torch.zeros(2, D)
    for step in range(120):
        sums = torch.cat([torch.randn(2, D, generator=generator), torch.tensor([[3.0], [step % 2]])], dim=1)
        for bad in (math.nan, math.inf):
            fusion.update_means(torch.where(torch.arange(2)[:, None] == step % 2, bad, sums))
        fusion.update_means(sums)
        for idx in range(2):
            if sums[idx, -1] > 0:
                means[idx].lerp_(sums[idx, :-1] / sums[idx, -1], max(0.01, 1 / (step + 1)))
        assert all(torch.equal(fusion.mean_of(part), mean) for part, mean in zip(PARTS, means, strict=True))
    assert int(fusion.num_mean_updates) == 120


def test_running_means_of_a_module_in_half_precision_are_float32() -> None:
    fusion = fusion_of(kind="learned_sum", center="running").train()
    fusion.set_means(dict.fromkeys(PARTS, torch.full((D,), 1 / 3)))
    fusion.bfloat16()
    assert {parameter.dtype for parameter in fusion.parameters()} == {torch.bfloat16}
    assert all(torch.equal(fusion.mean_of(part), torch.full((D,), 1 / 3)) for part in PARTS)
    vectors = {part: torch.full((999, D), 1 / 3, dtype=torch.bfloat16) for part in PARTS}
    fusion.count_rows(vectors, dict.fromkeys(PARTS, torch.ones(999, dtype=torch.bool)))
    sums = fusion.take_pending()
    assert sums is not None and sums.dtype == torch.float32 and sums[0, -1] == 999


@pytest.mark.parametrize("kind", ["learned_sum", "gate"])
def test_what_is_learned_gets_a_gradient_even_where_no_row_has_a_part(kind: str) -> None:
    fusion, embeddings = stirred(fusion_of(kind=kind)), made()
    absent = {**PRESENT, "product_text": torch.zeros(5, dtype=torch.bool)}
    vectors = {**embeddings.vectors, "product_text": torch.zeros(5, D)}
    fusion(vectors, absent).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())
    fusion.zero_grad()
    fusion(embeddings.vectors, PRESENT)[:, 0].sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in fusion.parameters())


def test_what_is_learned_or_measured_is_told_by_the_fusion_and_lies_in_its_state() -> None:
    assert set(fusion_of(kind="learned_sum").state_dict()) == {f"log_weights.{part}" for part in PARTS}
    assert set(fusion_of(center="measured").state_dict()) == {"num_mean_updates", *(f"mean_{part}" for part in PARTS)}
    assert fusion_of(kind="gate").needs_one_vector and fusion_of(kind="gate").index_width == D
    combined = fusion_of(kind="score_product")
    assert not combined.needs_one_vector and combined.index_width == 2 * D


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "gates"}, r"model\.fusions\.product\.kind=gates: there are fixed_sum, learned_sum, gate"),
        ({"center": True}, r"model\.fusions\.product\.center=True: there are null, running, measured"),
        ({"hidden_width": 8}, r"hidden_width: is an option of kind=gate, not of fixed_sum"),
        ({"kind": "gate", "hidden_width": -1}, r"hidden_width=-1: give a whole number"),
        ({"kind": "score_product", "floor": 0}, r"floor=0: give a number above 0"),
        ({"kind": "gate", "product_text": 0}, r"product_text=0: with kind=gate give a weight above 0"),
        ({"product_text": "heavy"}, r"product_text=heavy: give a number"),
    ],
)
def test_mistakes_name_the_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fusion_of(**options)


# --- combination of scores ------------------------------------------------------------------------------


def rows(count: int, parts: int, seed: int) -> Tensor:
    made = torch.randn(count, parts, D, generator=torch.Generator().manual_seed(seed))
    return normalize(made, dim=-1).flatten(1)


def combine(combination: ScoreCombination, queries: Tensor, gallery: Tensor, reference: Tensor) -> Tensor:
    return combination(queries, gallery, combination.reference_parts(reference))


@pytest.mark.parametrize(
    ("kind", "floor"), [("standardized_sum", 3.0), ("score_product", 2.0), ("score_product", None)]
)
def test_combined_scores_are_those_of_every_pair_one_by_one(kind: str, floor: float | None) -> None:
    queries, gallery = rows(3, 2, 5), rows(12, 2, 6)
    queries[2, D:], gallery[7, :D] = 0, 0  # a query without its second part, a product without its first
    reference = gallery[:9]
    weights = (1.0, 0.5), (2.0, 1.0)
    scores = combine(ScoreCombination(kind, *weights, floor), queries, gallery, reference)
    for q, n in ((q, n) for q in range(3) for n in range(12)):
        pairs = []
        for i, j in ((i, j) for i in range(2) for j in range(2)):
            asked, product = queries[q, i * D : (i + 1) * D], gallery[n, j * D : (j + 1) * D]
            if not asked.any() or not product.any():
                continue
            known = [float(asked @ row[j * D : (j + 1) * D]) for row in reference if row[j * D : (j + 1) * D].any()]
            z = (float(asked @ product) - np.mean(known)) / np.std(known)
            pairs.append((weights[0][i] * weights[1][j], float(asked @ product) if floor is None else z))
        total = sum(weight for weight, _ in pairs)
        if kind == "standardized_sum":
            expected = sum(w * z for w, z in pairs) / math.sqrt(sum(w * w for w, _ in pairs))
        else:
            expected = math.prod(max(0.0, z + (floor or 0.0)) ** (w / total) for w, z in pairs)
        assert float(scores[q, n]) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize(
    ("kind", "floor"), [("standardized_sum", 3.0), ("score_product", 2.0), ("score_product", None)]
)
def test_on_a_cpu_a_combined_score_depends_on_its_two_rows_and_the_reference_alone(
    kind: str, floor: float | None, parts: int
) -> None:
    queries, gallery, reference = rows(75, parts, 5), rows(1300, parts, 6), rows(333, parts, 7)
    combination = ScoreCombination(kind, (1.0, 0.5, 0.3)[:parts], (2.0, 1.0, 0.7)[:parts], floor)
    whole = combine(combination, queries, gallery, reference)
    assert len(whole.unique()) > 300
    for asked in (slice(1), slice(3, 12), slice(5, 75)):
        for offered in (slice(7, 8), slice(3, 41), slice(1, 1300)):
            assert torch.equal(combine(combination, queries[asked], gallery[offered], reference), whole[asked, offered])
    order = torch.randperm(1300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(combine(combination, queries, gallery[order], reference), whole[:, order])


def test_a_sum_of_standardized_scores_is_one_search_by_the_linear_query() -> None:
    queries, gallery = rows(4, 2, 7), rows(40, 2, 8)
    combination = ScoreCombination("standardized_sum", (1.0, 0.7), (1.0, 0.4))
    linear = combination.linear_query(queries, combination.reference_parts(gallery)) @ gallery.T
    assert torch.equal(linear.argsort(dim=1), combine(combination, queries, gallery, gallery).argsort(dim=1))
    avoiding = replace(combination, query_weights=(1.0, -0.7))
    linear = avoiding.linear_query(queries, avoiding.reference_parts(gallery)) @ gallery.T
    assert torch.equal(linear.argsort(dim=1), combine(avoiding, queries, gallery, gallery).argsort(dim=1))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["standardized_sum", "score_product"])
def test_a_part_that_no_reference_product_has_does_not_count(kind: str) -> None:
    queries, gallery, reference = rows(3, 2, 5), rows(12, 2, 6), rows(9, 2, 7)
    reference[:, D:], gallery[0, :D] = 0, 0
    combination = ScoreCombination(kind, (1.0, 0.5), (2.0, 1.0))
    linear = combination.linear_query(queries, combination.reference_parts(reference))
    assert linear[:, :D].any() and not linear[:, D:].any() and linear.isfinite().all()
    scores = combine(combination, queries, gallery, reference)
    first = combine(replace(combination, product_weights=(2.0,)), queries, gallery[1:, :D], reference[:, :D])
    torch.testing.assert_close(scores[:, 1:], first)
    assert (scores[:, :1] <= scores).all()  # a product of that part alone


@pytest.mark.parametrize(
    ("kind", "floor"), [("standardized_sum", 3.0), ("score_product", 2.0), ("score_product", None)]
)
def test_a_product_with_parts_of_weight_0_alone_is_the_last(kind: str, floor: float | None) -> None:
    queries, gallery = rows(3, 1, 5), rows(12, 2, 6)
    gallery[4, :D] = 0
    scores = combine(ScoreCombination(kind, (1.0,), (1.0, 0.0), floor), queries, gallery, gallery)
    assert (scores[:, 4] == scores.min(dim=1).values).all() and scores.isfinite().all()


def test_two_sides_combine_alike() -> None:
    query = Fusion("query", {"query_image": 1.0, "query_text": 0.5, "kind": "score_product", "floor": 2.0}, D)
    assert combination_of(query, fusion_of()) == ScoreCombination("score_product", (1.0, 0.5), (1.0,), 2.0)
    assert combination_of(None, fusion_of()) is None
    with pytest.raises(ValueError, match=r"query\.kind=score_product and .*product\.kind=standardized_sum: two sides"):
        combination_of(query, fusion_of(kind="standardized_sum"))
