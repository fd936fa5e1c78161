"""Pairs, ids and presence: which rows meet which columns, on hand-made batches."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from mim_lightning.losses.contrastive import info_nce, sigmoid
from mim_lightning.losses.objective import Objective, Pair
from mim_lightning.types import Batch, Embeddings

NAMES = ("query_image", "product_image", "product_text", "query_text", "query", "product")


def make_batch(product, targets=None, references=None, padding=None) -> Batch:
    product = torch.tensor(product)
    targets = product[:, None] if targets is None else torch.tensor(targets)
    size = len(product)
    return Batch(
        inputs={},
        rows={},
        sample_nums=torch.arange(size),
        query_keys=torch.arange(size),
        product_keys=product,
        target_keys=targets,
        target_grades=(targets >= 0).long(),
        reference_keys=targets if references is None else torch.tensor(references),
        category_keys=torch.full((size,), -1),
        is_padding=torch.zeros(size, dtype=torch.bool) if padding is None else torch.tensor(padding),
    )


def make_embeddings(size: int, names=NAMES, absent=(), seed=0) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    vectors, present = {}, {}
    for name in names:
        present[name] = torch.tensor([(name, row) not in absent for row in range(size)])
        vectors[name] = F.normalize(torch.randn(size, 4, generator=generator), dim=-1) * present[name][:, None]
    return Embeddings(vectors, present)


def objective(**pairs) -> Objective:
    return Objective({name: Pair(*ends) for name, ends in pairs.items()}, info_nce, NAMES, init_scale=1.0)


def symmetric_cross_entropy(left, right):
    logits, target = left @ right.T, torch.arange(len(left))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def test_distinct_products_give_symmetric_cross_entropy() -> None:
    embeddings = make_embeddings(4)
    result = objective(a=("query_image", "product_image"))(embeddings, make_batch([1, 2, 3, 4]))
    expected = symmetric_cross_entropy(embeddings.vectors["query_image"], embeddings.vectors["product_image"])
    torch.testing.assert_close(result.loss, expected)


def test_weights_multiply_pair_losses_and_zero_removes_a_pair() -> None:
    ends = {"a": ("query_image", "product_image", 0.5), "b": ("query_image", "product_text", 2.0)}
    result = objective(**ends, c=("query_text", "product_text", 0.0))(make_embeddings(4), make_batch([1, 2, 3, 4]))
    torch.testing.assert_close(result.loss, 0.5 * result.per_pair["a"] + 2.0 * result.per_pair["b"])
    assert set(result.per_pair) == {"a", "b"}


def test_two_queries_of_one_product_are_no_negatives_of_it() -> None:
    embeddings = make_embeddings(2)
    result = objective(a=("query_image", "product_image"))(embeddings, make_batch([7, 7]))
    assert result.loss == 0.0
    assert result.stats["rows_with_repeated_product"] == 1.0


def test_every_relevant_product_of_a_query_is_a_positive() -> None:
    # products 1 and 2 are relevant to row 0; product 2 is in row 1 and must not be its negative
    embeddings = make_embeddings(2)
    result = objective(a=("query", "product"))(embeddings, make_batch([1, 2], targets=[[1, 2], [2, -1]]))
    vectors = embeddings.vectors
    logit = float(vectors["query"][1] @ vectors["product"][0] - vectors["query"][1] @ vectors["product"][1])
    query_loss = math.log1p(math.exp(logit)) / 2  # row 0 has no negative, row 1 has product 1
    own, other = vectors["query"][0] @ vectors["product"][0], vectors["query"][1] @ vectors["product"][0]
    product_loss = math.log1p(math.exp(float(other - own))) / 2
    torch.testing.assert_close(result.loss, torch.tensor((query_loss + product_loss) / 2))


def test_a_query_image_is_matched_with_its_reference_not_with_the_target() -> None:
    # the photo shows product 2, the text asks for product 1 in its place; product 2 is in the second row
    batch = make_batch([1, 2], targets=[[1], [2]], references=[[2], [2]])
    embeddings = make_embeddings(2)
    pulled = embeddings.vectors["query_image"].clone().requires_grad_()
    moved = Embeddings({**embeddings.vectors, "query_image": pulled}, embeddings.present)
    objective(a=("query_image", "product_image"))(moved, batch).loss.backward()
    towards = -pulled.grad[0]
    assert towards @ embeddings.vectors["product_image"][1] > towards @ embeddings.vectors["product_image"][0]


def test_a_reference_joins_once_and_only_where_no_row_has_its_product() -> None:
    # the photos of rows 0 and 1 show product 9, that of row 2 the product of row 0; their references follow them
    rows = {"product": [1, 2, 3], "targets": [[1], [2], [3]], "references": [[9], [9], [1]]}
    ends = {"a": ("query_image", "product_image"), "b": ("query", "product")}
    embeddings = make_embeddings(6, absent={(name, row) for name in ("query_image", "query") for row in (3, 4, 5)})
    batch = make_batch([1, 2, 3, 9, 9, 1], [*rows["targets"], *[[-1]] * 3], [*rows["references"], *[[-1]] * 3])
    result = objective(**ends)(embeddings, replace(batch, num_references=3))
    first = Embeddings(
        *({name: part[:4] for name, part in vars(embeddings)[kind].items()} for kind in ("vectors", "present"))
    )
    one = make_batch([1, 2, 3, 9], [*rows["targets"], [-1]], [*rows["references"], [-1]])
    torch.testing.assert_close(result.loss, objective(**ends)(first, one).loss)
    assert len(replace(batch, num_references=3)) == 3 and result.stats["rows_with_repeated_product"] == 0
    photos, products = embeddings.vectors["query_image"], embeddings.vectors["product_image"]
    logits = photos[:3] @ products[:4].T
    forward = F.cross_entropy(logits, torch.tensor([3, 3, 0]))
    own = objective(a=ends["a"])(embeddings, replace(batch, num_references=3)).loss
    back = [
        torch.stack([logits[2, 0], logits[0, 0], logits[1, 0]]).logsumexp(0) - logits[2, 0],
        sum(torch.stack([logits[row, 3], logits[2, 3]]).logsumexp(0) - logits[row, 3] for row in (0, 1)) / 2,
    ]
    torch.testing.assert_close(own, (forward + sum(back) / 2) / 2)


def test_padding_and_absent_rows_change_nothing() -> None:
    small = make_embeddings(3, absent={("query_text", 1)})
    padded = Embeddings(
        {name: torch.cat([v, torch.randn(1, 4)]) for name, v in small.vectors.items()},
        {name: torch.cat([p, torch.tensor([True])]) for name, p in small.present.items()},
    )
    both = objective(a=("query_image", "product_image"), b=("query_text", "product_text"))
    expected = both(small, make_batch([1, 2, 3])).loss
    got = both(padded, make_batch([1, 2, 3, 1], padding=[False, False, False, True])).loss
    torch.testing.assert_close(got, expected)


def test_a_batch_without_any_text_has_zero_loss_and_a_gradient() -> None:
    embeddings = make_embeddings(2, absent={("query_text", 0), ("query_text", 1)})
    leaf = embeddings.vectors["query_text"].requires_grad_()
    loss = objective(a=("query_text", "product_text"))(embeddings, make_batch([1, 2])).loss
    loss.backward()
    assert loss == 0.0 and leaf.grad is not None


def test_scale_is_clamped_and_can_be_learnt_by_pair() -> None:
    pairs = {"a": Pair("query_image", "product_image"), "b": Pair("query_image", "product_text")}
    shared = Objective(pairs, info_nce, NAMES, init_scale=100.0, max_scale=100.0)
    with torch.no_grad():
        shared.log_scales["all"].add_(5.0)
    result = shared(make_embeddings(3), make_batch([1, 2, 3]))
    torch.testing.assert_close(result.stats["logit_scale"], torch.tensor(100.0))
    result.loss.backward()
    assert shared.log_scales["all"].grad != 0, "a scale at its clamp must be able to come down"
    with pytest.raises(ValueError, match=r"loss\.init_scale=101: exceeds"):
        Objective(pairs, info_nce, NAMES, init_scale=101)
    own = Objective(pairs, sigmoid, NAMES, init_scale=10.0, init_bias=-10.0, scale_per_pair=True)
    assert {name for name, _ in own.named_parameters()} == {
        f"{kind}.{p}" for kind in ("log_scales", "biases") for p in "ab"
    }


def test_unknown_tower_in_a_pair_is_named() -> None:
    with pytest.raises(ValueError, match=r"model\.pairs\.a: no tower or fusion 'product_sound'; there are"):
        objective(a=("query_image", "product_sound"))


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to learn"):
        objective(a=("query_image", "product_image", 0.0))


def triplet(similarities_BG, positives_BG, columns_G, margin=0.2):
    """Return the hinge of each row's nearest positive and nearest negative: a loss that a user might write."""
    negatives_B = similarities_BG.masked_fill(positives_BG | ~columns_G, -2).amax(1)
    positives_B = similarities_BG.masked_fill(~positives_BG, -2).amax(1)
    return (margin + negatives_B - positives_B).clamp(min=0)


def test_a_users_loss_gets_cosines_and_no_scale_is_learned() -> None:
    pairs, embeddings = {"a": Pair("query_image", "product_image")}, make_embeddings(5)
    leaf = embeddings.vectors["query_image"].requires_grad_()
    own = Objective(pairs, partial(triplet, margin=0.5), NAMES, scale="none")
    result = own(embeddings, make_batch([1, 2, 3, 4, 5]))
    cosines = embeddings.vectors["query_image"] @ embeddings.vectors["product_image"].T
    hinges = []
    for table in (cosines, cosines.T):
        for row in range(5):
            others = [table[row, column].item() for column in range(5) if column != row]
            hinges.append(max(0.0, 0.5 + max(others) - table[row, row].item()))
    torch.testing.assert_close(result.loss, torch.tensor(sum(hinges) / 10))
    result.loss.backward()
    assert leaf.grad.any() and not list(own.parameters()) and "logit_scale" not in result.stats


def test_a_fixed_scale_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, batch = make_embeddings(4), make_batch([1, 2, 3, 4])
    pairs = {"a": Pair("query_image", "product_image")}
    fixed = Objective(pairs, info_nce, NAMES, init_scale=7.0, scale="fixed")
    learned = Objective(pairs, info_nce, NAMES, init_scale=7.0)
    assert not list(fixed.parameters())
    for entries in (2**20, 0):  # whole, then in tiles
        monkeypatch.setattr("mim_lightning.losses.objective.WHOLE_MATRIX", entries)
        torch.testing.assert_close(fixed(embeddings, batch).loss, learned(embeddings, batch).loss)
    with pytest.raises(ValueError, match=r"loss\.scale=cosine: choose one of learned, fixed, none"):
        Objective(pairs, info_nce, NAMES, scale="cosine")


def test_large_batches_are_computed_in_tiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    size, largest = 256, []
    monkeypatch.setattr("mim_lightning.losses.objective.WHOLE_MATRIX", size**2 - 1)
    monkeypatch.setattr("mim_lightning.losses.tiled.CPU_TILE", 64)
    both = objective(a=("query_image", "product_image"), b=("query_text", "product_text"))
    embeddings, batch = make_embeddings(size, absent={("query_text", 1)}), make_batch(list(range(size)))

    class Sizes(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            largest.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    with Sizes():
        result = both(embeddings, batch)
    assert max(largest) < size**2 / 4
    monkeypatch.undo()
    expected = both(embeddings, batch)
    torch.testing.assert_close(result.loss, expected.loss)
    assert result.stats == expected.stats


@pytest.mark.parametrize("loss", [info_nce, sigmoid])
def test_the_loss_counts_again_at_each_width(loss, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = {"a": Pair("query_image", "product_image", 2.0), "b": Pair("query", "product")}
    options = {"init_scale": 5.0, "init_bias": -1.0 if loss is sigmoid else None}
    batch, leaves = make_batch([1, 2, 2, 4]), make_embeddings(4, absent={("query_image", 3)})
    for vectors in leaves.vectors.values():
        vectors.requires_grad_()

    def compute(embeddings, **more):
        trained = Objective(pairs, loss, NAMES, **options, **more)
        result = trained(embeddings, batch)
        inputs = [leaves.vectors[name] for name in trained.sides]
        return result, torch.autograd.grad(result.loss, [*inputs, *trained.parameters()], allow_unused=True)

    def cut(width: int) -> Embeddings:
        rows = {name: vectors[:, :width] for name, vectors in leaves.vectors.items()}
        shorter = {name: part / part.norm(dim=1, keepdim=True).clamp(min=1e-12) for name, part in rows.items()}
        return Embeddings(shorter, leaves.present)

    (whole, of_whole), (two, of_two), (three, of_three) = compute(leaves), compute(cut(2)), compute(cut(3))
    for entries in (2**20, 0):  # whole matrices, then tiles
        monkeypatch.setattr("mim_lightning.losses.objective.WHOLE_MATRIX", entries)
        result, gradients = compute(leaves, widths={3: 1.0, "2": 0.5}, dimension=4)
        torch.testing.assert_close(result.loss, whole.loss + 0.5 * two.loss + three.loss)
        for got, full, half, other in zip(gradients, of_whole, of_two, of_three, strict=True):
            torch.testing.assert_close(got, full + 0.5 * half + other)
        torch.testing.assert_close(result.per_pair["b/width_2"], two.per_pair["b"])
        assert [*result.per_pair] == ["a", "b", "a/width_2", "b/width_2", "a/width_3", "b/width_3"]
        assert result.stats["negatives_per_row"] == whole.stats["negatives_per_row"]


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({0: 1.0}, r"loss\.widths: no embedding has a width of 0; give whole numbers from 1 to 15, or null"),
        ({64: 1.0}, r"loss\.widths: no embedding has a width of 64; give whole numbers from 1 to 15, or null"),
        ({2.5: 1.0}, r"loss\.widths: no embedding has a width of 2\.5; give"),
        ({16: 1.0}, r"loss\.widths: 16 is embed_dim, the full width, which always counts; leave it out"),
        ({8: 0}, r"loss\.widths\.8=0: give a weight above 0, or leave the width out"),
        ([8], r"loss\.widths=\[8\]: give the weight of each width, as \{64: 1\.0, 128: 1\.0\}, or null"),
    ],
)
def test_impossible_widths_name_the_key(widths, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective({"a": Pair("query", "product")}, info_nce, NAMES, widths=widths, dimension=16)
