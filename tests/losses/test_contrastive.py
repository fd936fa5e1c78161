"""The losses against loops that follow their definition, and on vectors whose answer can be written down."""

import math

import pytest
import torch

from mim_lightning.losses.contrastive import info_nce, sigmoid
from mim_lightning.losses.positives import share_product

NONE = -1


def naive_info_nce(logits, positives, columns):
    losses = []
    for row in range(len(logits)):
        terms = []
        negatives = [math.exp(logits[row, c]) for c in range(logits.shape[1]) if columns[c] and not positives[row, c]]
        for column in range(logits.shape[1]):
            if positives[row, column]:
                own = math.exp(logits[row, column])
                terms.append(-math.log(own / (own + sum(negatives))))
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return torch.tensor(losses)


def random_case(seed):
    torch.manual_seed(seed)
    logits = torch.randn(5, 8) * 3
    columns = torch.rand(8) > 0.2
    positives = (torch.rand(5, 8) > 0.7) & columns
    return logits, positives, columns


@pytest.mark.parametrize("seed", range(5))
def test_info_nce_agrees_with_its_definition(seed: int) -> None:
    case = random_case(seed)
    torch.testing.assert_close(info_nce(*case), naive_info_nce(*case), atol=1e-5, rtol=1e-5)


def test_info_nce_with_one_positive_is_cross_entropy() -> None:
    logits = torch.randn(6, 6)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(6), reduction="none")
    got = info_nce(logits, torch.eye(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(got, expected)


def test_a_second_positive_is_never_pushed_away() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0]], requires_grad=True)
    positives = torch.tensor([[True, True, False]])
    info_nce(logits, positives, torch.ones(3, dtype=torch.bool)).sum().backward()
    assert (logits.grad[0, :2] < 0).all() and logits.grad[0, 2] > 0


def test_rows_without_positives_or_negatives_cost_nothing_and_stay_finite() -> None:
    logits = torch.randn(2, 2, requires_grad=True)
    positives = torch.tensor([[False, False], [True, True]])
    losses = info_nce(logits, positives, torch.ones(2, dtype=torch.bool))
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0]
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("seed", range(3))
def test_sigmoid_agrees_with_its_definition(seed: int) -> None:
    logits, positives, columns = random_case(seed)
    expected = [
        sum(
            -math.log(1 / (1 + math.exp(-(1 if positives[r, c] else -1) * logits[r, c])))
            for c in range(8)
            if columns[c]
        )
        for r in range(5)
    ]
    torch.testing.assert_close(sigmoid(logits, positives, columns), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_share_product_is_set_intersection() -> None:
    left = torch.tensor([[1, 2], [3, NONE], [NONE, NONE]])
    right = torch.tensor([[2], [3], [NONE]])
    assert share_product(left, right).tolist() == [
        [True, False, False],
        [False, True, False],
        [False, False, False],
    ]


def test_gradients_by_finite_difference() -> None:
    logits, positives, columns = random_case(1)
    for loss in (info_nce, sigmoid):
        torch.autograd.gradcheck(
            lambda x, loss=loss: loss(x, positives, columns), logits.double().requires_grad_(), eps=1e-6, atol=1e-5
        )
