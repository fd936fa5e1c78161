"""A teacher's vectors: losses against naive oracles, absent rows, and what a pair may not be."""

import math

import pytest
import torch
import torch.nn.functional as F

from mim_lightning.losses import distillation
from mim_lightning.losses.contrastive import info_nce
from mim_lightning.losses.distillation import relational
from mim_lightning.losses.objective import Objective, Pair
from mim_lightning.types import Batch
from tests.losses.test_objective import NAMES, make_batch, make_embeddings

ABSENT = (("product", 3), ("product_teacher", 1))


def make(vectors=("product_teacher",), **pairs: Pair) -> Objective:
    return Objective(pairs, info_nce, NAMES, init_scale=1.0, vectors=vectors)


def with_teacher(product, width: int = 4, absent=ABSENT) -> Batch:
    teacher = F.normalize(torch.randn(len(product), width, generator=torch.Generator().manual_seed(5)), dim=1)
    for row in range(len(product)):  # equal products have equal vectors
        teacher[row] = teacher[product.index(product[row])]
    for name, row in absent:
        teacher[row] *= name != "product_teacher"
    batch = make_batch(product)
    return Batch(**{**vars(batch), "vectors": {"product_teacher": teacher}})


def test_cosine_is_the_mean_over_rows_with_both() -> None:
    embeddings, batch = make_embeddings(5, absent=ABSENT), with_teacher([1, 2, 3, 4, 5])
    result = make(a=Pair("product", "product_teacher", 2.0, "cosine"))(embeddings, batch)
    cosines = (embeddings.vectors["product"] * batch.vectors["product_teacher"]).sum(1)
    torch.testing.assert_close(result.per_pair["a"], 1 - cosines[[0, 2, 4]].mean())
    torch.testing.assert_close(result.loss, 2 * result.per_pair["a"])


def test_a_contrastive_pair_with_a_teacher_is_one_with_a_tower_of_its_vectors() -> None:
    embeddings, batch = make_embeddings(5), with_teacher([1, 2, 3, 4, 4])
    present = batch.vectors["product_teacher"].any(1)
    embeddings.vectors["product_image"], embeddings.present["product_image"] = batch.vectors["product_teacher"], present
    ends = {"teacher": Pair("query", "product_teacher"), "tower": Pair("query", "product_image")}
    result = make(**ends)(embeddings, batch)
    torch.testing.assert_close(result.per_pair["teacher"], result.per_pair["tower"])


@pytest.mark.parametrize("at_once", [distillation.ROWS_AT_ONCE, 6])
def test_relational_compares_rows_of_other_products(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(distillation, "ROWS_AT_ONCE", at_once)
    product, width = [1, 2, 3, 4, 3, 6], 7
    embeddings, batch = make_embeddings(6, absent=ABSENT), with_teacher(product, width)
    student = embeddings.vectors["product"].requires_grad_()
    result = make(a=Pair("product", "product_teacher", 1.0, "relational", 0.5))(embeddings, batch)

    teacher, losses = batch.vectors["product_teacher"], []
    rows = [0, 2, 4, 5]
    for row in rows:
        others = [other for other in rows if product[other] != product[row]]
        p, q = (torch.softmax(v[row] @ v[others].T / 0.5, dim=0).tolist() for v in (teacher, student))
        losses.append(sum(p[k] * math.log(p[k] / q[k]) for k in range(len(others))))
    torch.testing.assert_close(result.loss.item(), float(sum(losses)) / 4, rtol=1e-5, atol=0)
    result.loss.backward()
    assert student.grad is not None and student.grad[[0, 2, 4, 5]].abs().sum(1).min() > 0
    assert not student.grad[[1, 3]].any()


def test_relational_is_zero_for_the_teacher_itself_and_for_a_row_alone() -> None:
    vectors = F.normalize(torch.randn(4, 3), dim=1)
    columns = ~torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close(relational(vectors, vectors, vectors, vectors, columns, 0.1), torch.zeros(4))
    result = make(a=Pair("product", "product_teacher", 1.0, "relational"))(
        make_embeddings(2), with_teacher([7, 7], absent=())
    )
    assert result.loss == 0.0


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (Pair("product", "product_teacher", 1.0, "cosin"), "a.loss=cosin: choose one of cosine, relational"),
        (Pair("product", "query", 1.0, "cosine"), "a.loss=cosine: compares with a column of data.vectors"),
        (Pair("product_teacher", "product_teacher"), "are both given vectors"),
        (Pair("product", "product_teacher", 1.0, "relational", 0.0), "a.temperature=0.0: must be above 0"),
        (Pair("product", "product_old"), "no tower or fusion 'product_old'; there are .*product_teacher"),
    ],
)
def test_a_mistake_is_named(pair: Pair, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(a=pair)


def test_vectors_of_another_dimension_are_for_the_relational_loss() -> None:
    make(a=Pair("product", "product_teacher", 1.0, "relational")).validate_dimensions(4, {"product_teacher": 7})
    with pytest.raises(ValueError, match="'product_teacher' has 7 dimensions, the model 4; give embed_dim=7"):
        make(a=Pair("product", "product_teacher")).validate_dimensions(4, {"product_teacher": 7})
