"""Weights of rows, graded positives and the correction by popularity, against their definition row by row."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mim_lightning.losses import exponential, info_nce, linear, reciprocal_rank, sigmoid
from mim_lightning.losses.objective import Objective, Pair
from mim_lightning.types import Batch, Embeddings

NAMES = ("query_image", "query_text", "product_image", "product_text")
PAIRS = {
    "query~product": ("query_text", "product_image"),
    "image~image": ("query_image", "product_image"),
    "image~text": ("query_image", "query_text"),
    "product~query": ("product_text", "query_text"),
}
SCALE, NUM_ROWS = 5.0, 12


def make_objective(loss=info_nce, **options) -> Objective:
    pairs = {name: Pair(*ends) for name, ends in PAIRS.items()}
    return Objective(pairs, loss, NAMES, init_scale=SCALE, **options).double()


@pytest.fixture
def batch() -> Batch:
    """Queries with up to two targets among few products; the last row is padding, the one before has no product."""
    torch.manual_seed(1)
    products = torch.randint(6, (NUM_ROWS,))
    products[-2] = -1
    other = torch.randint(-1, 6, (NUM_ROWS,))
    targets = torch.stack([products, torch.where(other == products, -1, other)], dim=1)
    return Batch(
        inputs={},
        rows={},
        sample_nums=torch.arange(NUM_ROWS),
        query_keys=torch.arange(NUM_ROWS),
        product_keys=products,
        target_keys=targets,
        target_grades=(targets >= 0) * torch.randint(1, 4, targets.shape),
        reference_keys=targets,
        category_keys=torch.full((NUM_ROWS,), -1),
        is_padding=torch.arange(NUM_ROWS) == NUM_ROWS - 1,
        columns={"weight": torch.rand(NUM_ROWS) + 0.1, "log_frequency": torch.randn(7)[products]},
    )


@pytest.fixture
def embeddings() -> Embeddings:
    torch.manual_seed(2)
    vectors = {name: F.normalize(torch.randn(NUM_ROWS, 4, dtype=torch.float64), dim=1) for name in NAMES}
    present = {name: torch.arange(NUM_ROWS) != idx for idx, name in enumerate(NAMES)}
    return Embeddings({name: part.requires_grad_() for name, part in vectors.items()}, present)


def define(embeddings, batch, weigh_grade=None, is_weighted=False, is_corrected=False) -> torch.Tensor:
    """Return the sum over pairs by the definition of weighted InfoNCE, a row and a positive at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for ends in PAIRS.values():
        for left, right in (ends, ends[::-1]):
            values, weights = [], []
            for row in present_rows(embeddings, batch, left):
                columns = present_rows(embeddings, batch, right)
                found = {c: relation(batch, left, row, right, c, weigh_grade) for c in columns}
                positives = {c: weight for c, weight in found.items() if weight is not None}
                if not positives:
                    continue
                logits = {}
                for c in columns:
                    logits[c] = SCALE * embeddings.vectors[left][row] @ embeddings.vectors[right][c]
                    if is_corrected and right.startswith("product"):
                        logits[c] = logits[c] - batch.columns["log_frequency"][c].double()
                loss = torch.zeros((), dtype=torch.float64)
                for c, weight in positives.items():
                    of_softmax = [logits[c], *(logits[n] for n in columns if n not in positives)]
                    loss = loss + weight * (torch.stack(of_softmax).logsumexp(0) - logits[c]) / sum(positives.values())
                weight = float(batch.columns["weight"][row]) if is_weighted else 1.0
                if weigh_grade is not None:
                    weight *= weigh_grade(grade_of(batch, row, int(batch.product_keys[row])))
                values.append(weight * loss)
                weights.append(weight)
            total = total + sum(values) / sum(weights) / 2
    return total


def present_rows(embeddings, batch, name) -> list[int]:
    return [row for row in range(NUM_ROWS) if embeddings.present[name][row] and not batch.is_padding[row]]


def products_of(batch, name, row) -> list[int]:
    keys = [int(batch.product_keys[row])] if name.startswith("product") else batch.target_keys[row].tolist()
    return [key for key in keys if key >= 0]


def grade_of(batch, row, product) -> int:
    grades = dict(zip(batch.target_keys[row].tolist(), batch.target_grades[row].tolist(), strict=True))
    return grades[product] if product >= 0 and product in grades else 1


def relation(batch, left, row, right, column, weigh_grade) -> float | None:
    """Return the weight of a positive, None if it is none."""
    common = {*products_of(batch, left, row)} & {*products_of(batch, right, column)}
    if not common:
        return None
    if weigh_grade is None or left.split("_")[0] == right.split("_")[0]:
        return 1.0
    query = row if left.startswith("query") else column
    return max(weigh_grade(grade_of(batch, query, product)) for product in common)


@pytest.mark.parametrize(
    ("options", "meaning"),
    [
        ({"row_weights": True}, {"is_weighted": True}),
        ({"grades": "linear"}, {"weigh_grade": float}),
        ({"grades": "exponential", "row_weights": True}, {"weigh_grade": lambda g: 2.0**g - 1, "is_weighted": True}),
        ({"grades": partial(reciprocal_rank, max_grade=3)}, {"weigh_grade": lambda g: 1 / (4 - g)}),
        ({"popularity_correction": True}, {"is_corrected": True}),
        (
            {"popularity_correction": True, "grades": "linear", "row_weights": True},
            {"is_corrected": True, "weigh_grade": float, "is_weighted": True},
        ),
    ],
)
def test_value_and_gradients_are_those_of_the_definition(options, meaning, embeddings, batch) -> None:
    leaves = [*embeddings.vectors.values()]
    expected = define(embeddings, batch, **meaning)
    result = make_objective(**options)(embeddings, batch)
    torch.testing.assert_close(result.loss, expected, rtol=1e-7, atol=0)  # grades and weights are float32
    for got, wanted in zip(*(torch.autograd.grad(loss, leaves) for loss in (result.loss, expected)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", [info_nce, sigmoid])
@pytest.mark.parametrize("whole_matrix", [0, 2**20])
def test_weights_of_one_change_no_bit(loss, whole_matrix, embeddings, batch, monkeypatch) -> None:
    monkeypatch.setattr("mim_lightning.losses.objective.WHOLE_MATRIX", whole_matrix)
    plain = Embeddings({name: part.detach().float().requires_grad_() for name, part in embeddings.vectors.items()}, {})
    plain = replace(plain, present=embeddings.present)
    ones = replace(batch, columns={"weight": torch.ones(NUM_ROWS)})
    results = [make_objective(loss, row_weights=is_on).float()(plain, ones).loss for is_on in (False, True)]
    gradients = [torch.autograd.grad(value, [*plain.vectors.values()]) for value in results]
    assert torch.equal(*results)
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_rows_weigh_in_a_loss_of_ones_own(embeddings, batch) -> None:
    def row_number(similarities_BG, positives_BG, columns_G):
        return torch.arange(len(similarities_BG), dtype=torch.float64) + 0 * similarities_BG.sum(1)

    result = make_objective(row_number, row_weights=True)(embeddings, batch)
    mean = result.per_pair["query~product"]
    rows = [r for r in range(NUM_ROWS - 2) if r != 1]  # with a query text and a positive
    weights = batch.columns["weight"][rows].double()
    backward = [r for r in range(NUM_ROWS - 2) if r != 2]
    back_weights = batch.columns["weight"][backward].double()
    expected = (weights @ torch.tensor(rows).double()) / weights.sum()
    expected += (back_weights @ torch.tensor(backward).double()) / back_weights.sum()
    torch.testing.assert_close(mean, expected / 2)


def test_what_a_loss_cannot_do_is_refused_with_the_key(embeddings, batch) -> None:
    with pytest.raises(ValueError, match=r"loss\.grades=square: choose one of linear, exponential, or give a function"):
        make_objective(grades="square")
    with pytest.raises(ValueError, match=r"loss\.grades: only info_nce and sigmoid weigh positives"):
        make_objective(lambda *_: 0, grades="linear")
    with pytest.raises(ValueError, match=r"loss\.popularity_correction=true: corrects the softmax of info_nce"):
        make_objective(sigmoid, popularity_correction=True)
    with pytest.raises(ValueError, match=r"loss\.grades: weighs a grade of 3 by inf; weights must be above 0"):
        make_objective(grades=partial(reciprocal_rank, max_grade=2))(embeddings, batch)


def test_named_functions() -> None:
    grades = torch.tensor([1.0, 2.0, 3.0])
    assert linear(grades).tolist() == [1, 2, 3] and exponential(grades).tolist() == [1, 3, 7]
    assert reciprocal_rank(grades, max_grade=3).tolist() == [pytest.approx(1 / 3), 0.5, 1.0]
    assert math.isclose(float(exponential(torch.tensor(5.0))), 31)
