"""The tiled losses against their definition in float64, on one process, and the objective on 2 and 4 real ones."""

import sys
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from mim_lightning.losses import info_nce, sigmoid
from mim_lightning.losses.objective import Objective, Pair
from mim_lightning.losses.pair_tiles import PairTiles, Side
from mim_lightning.losses.tiled import has_tiled_form, tiled_losses
from mim_lightning.types import Batch, Embeddings
from tests.flow.entry_points import start

LOSSES = {"info_nce": info_nce, "sigmoid": sigmoid}
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{name: (loss, {}) for name, loss in LOSSES.items()},
    "weighted": (info_nce, {"row_weights": True}),
    "graded": (info_nce, {"row_weights": True, "grades": "exponential", "popularity_correction": True}),
    "graded sigmoid": (sigmoid, {"grades": "linear"}),
    "widths": (info_nce, {"widths": {3: 1.0, 5: 0.5}, "row_weights": True}),
    "references": (info_nce, {}),
    "graded references": (info_nce, {"row_weights": True, "grades": "linear"}),
}
NAMES = ("query_image", "query_text", "product_image", "product_text")
PAIRS = {
    f"{left}~{right}": Pair(left, right, weight)
    for weight, (left, right) in enumerate(
        [(left, right) for idx, left in enumerate(NAMES) for right in NAMES[idx + 1 :]], start=1
    )
}


def define(loss, pairs, weights, scales, biases) -> torch.Tensor:
    """Return the total by the losses' definition with whole matrices, in the dtype of the vectors."""
    total = 0.0
    for (left, right), weight, scale, bias in zip(pairs, weights, scales, biases, strict=True):
        similarities = left.vectors @ right.vectors.T * scale + bias
        grades = grade_table(left, right).to(similarities)
        for logits, of_rows, rows, columns in (
            (similarities, grades, left, right),
            (similarities.T, grades.T, right, left),
        ):
            if columns.biases is not None:
                logits = logits + columns.biases
            is_positive, factors = of_rows >= 0, of_rows.clamp(min=0)
            if loss is info_nce:
                negatives = logits.masked_fill(is_positive, -torch.inf).logsumexp(1, keepdim=True).clamp(min=-1e30)
                zero = torch.zeros_like(logits)
                terms = torch.logaddexp(zero, negatives - logits).masked_fill(~is_positive, 0.0)
                values = (factors * terms).sum(1) / factors.sum(1).clamp(min=1e-30)
            else:
                signs = torch.where(is_positive, -1.0, 1.0)
                terms = torch.logaddexp(torch.zeros_like(logits), signs * logits)
                values = (torch.where(is_positive, factors, 1.0) * terms).sum(1)
            of_row = (1.0 if rows.weights is None else rows.weights) * (factors.sum(1) > 0)
            total = total + weight * (of_row * values).sum() / of_row.sum().clamp(min=1e-30) / 2
    return total


def grade_table(left: Side, right: Side) -> torch.Tensor:
    """Return the grade of each positive, and -1 elsewhere."""
    left_grades, right_grades = (
        torch.ones(side.keys.shape) if side.grades is None else side.grades for side in (left, right)
    )
    is_same = (left.keys[:, None, :, None] == right.keys[None, :, None, :]) & (left.keys >= 0)[:, None, :, None]
    products = left_grades[:, None, :, None] * right_grades[None, :, None, :]
    return products.masked_fill(~is_same, -1.0).flatten(2).amax(2)


def make_sides(dtype, num_keys, num_products, extras, apart, generator) -> list[Side]:
    """Return three sides of 37, 45 and 41 rows; `apart`: rows of different sides have cosines near -1."""
    sides = []
    for idx, size in enumerate((37, 45, 41)):
        vectors = F.normalize(torch.randn(size, 8, generator=generator, dtype=torch.float64), dim=1)
        if apart:
            vectors = F.normalize(torch.eye(8)[0] * (-1) ** idx + 0.02 * vectors, dim=1)
        keys = torch.randint(-1, num_products, (size, num_keys[idx]), generator=generator)
        more = {}
        if extras:
            more = {name: torch.rand(size, generator=generator).to(dtype) for name in ("weights", "biases")}
            more["grades"] = torch.rand(keys.shape, generator=generator)
        sides.append(Side(vectors.to(dtype).requires_grad_(), keys, **more))
    return sides


def run(function, sides, scales, biases) -> list[torch.Tensor]:
    inputs = [*(side.vectors for side in sides), scales, biases]
    loss = function([(sides[0], sides[1]), (sides[2], sides[1])], [1.0, 0.5], scales, biases)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def relative(got: list[torch.Tensor], expected: list[torch.Tensor]) -> list[float]:
    scale = max(float(part.norm()) for part in expected[1:])  # that of the bias of InfoNCE is 0
    return [
        float((a.double() - b).norm() / max(float(b.norm()), 1e-3 * scale)) for a, b in zip(got, expected, strict=True)
    ]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(
    ("num_keys", "num_products", "extras", "scale", "apart"),
    [
        ((1, 1, 1), 30, False, 14.0, False),  # repeated products
        ((2, 1, 3), 40, False, 60.0, False),  # several relevant products
        ((3, 2, 1), 60, True, 14.0, False),  # row weights, column biases, grades
        ((1, 1, 1), 20, False, 100.0, True),  # negatives far below the largest possible logit
        ((1, 1, 1), 1, False, 14.0, False),  # nothing but positives and rows without
    ],
    ids=["repeated", "several", "weighted", "apart", "one product"],
)
def test_tiles_agree_with_the_definition(loss, num_keys, num_products, extras, scale, apart, monkeypatch) -> None:
    redone = []
    summed = PairTiles.sum_negatives
    monkeypatch.setattr(
        PairTiles, "sum_negatives", lambda self, in_float64=False: redone.append(in_float64) or summed(self, in_float64)
    )

    def compute(function, dtype):
        sides = make_sides(dtype, num_keys, num_products, extras, apart, torch.Generator().manual_seed(0))
        scales, biases = torch.tensor([scale, scale / 2], dtype=dtype), torch.tensor([-1.0, 0.5], dtype=dtype)
        return run(function, sides, scales.requires_grad_(), biases.requires_grad_())

    def tiled(*args):
        return tiled_losses(loss, *args, tile=16).loss

    expected = compute(partial(define, loss), torch.float64)
    assert max(relative(compute(tiled, torch.float64), expected)) < 1e-9
    ours, naive = (relative(compute(function, torch.float32), expected) for function in (tiled, partial(define, loss)))
    for mine, theirs in zip(ours, naive, strict=True):
        # and two roundings of a result, for where the naive form happens to come out exact
        assert mine < 2 * theirs + 2 * torch.finfo(torch.float32).eps, "float32 may lose twice what the naive form does"
    assert any(redone) == (apart and loss is info_nce)


def test_value_alone_and_half_precision() -> None:
    sides = make_sides(torch.float32, (1, 1, 1), 30, False, False, torch.Generator().manual_seed(0))
    pairs, scales = [(sides[0], sides[1])], torch.tensor([100.0])
    with torch.no_grad():
        alone = tiled_losses(info_nce, pairs, [2.0], scales).loss
    assert alone == tiled_losses(info_nce, pairs, [2.0], scales).loss and not alone.requires_grad
    rounded = [Side(side.vectors.detach().bfloat16().requires_grad_(), side.keys) for side in sides]
    wide = [Side(side.vectors.float(), side.keys) for side in rounded]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = (tiled_losses(info_nce, [(s[0], s[1])], [2.0], scales).loss for s in (rounded, wide))
    assert got == expected, "similarities of half precision vectors are computed in float32"
    got.backward()
    assert rounded[0].vectors.grad.dtype == torch.bfloat16 and torch.get_float32_matmul_precision() == "highest"


def test_buffers_are_no_larger_than_the_batch_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(
        "mim_lightning.losses.tiled.PairTiles", lambda *given: sizes.append(given[6].numel()) or PairTiles(*given)
    )
    keys = torch.arange(37)[:, None]
    for num_rows in (37, 0):
        side = Side(F.normalize(torch.randn(num_rows, 8), dim=1), keys[:num_rows])
        tiled_losses(info_nce, [(side, side)], [1.0], torch.ones(1), tile=1024)
        tiled_losses(info_nce, [(side, side)], [1.0], torch.ones(1), tile=5)
    assert sizes == [2 * 40 * 40, 2 * 5 * 5, 2, 2]


def test_the_built_in_losses_have_a_tiled_form() -> None:
    assert has_tiled_form(info_nce) and has_tiled_form(partial(sigmoid))
    assert not has_tiled_form(lambda *_: 0) and not has_tiled_form(partial(info_nce, margin=1))


# --- processes ----------------------------------------------------------------------------------------

NUM_ROWS = 24


def global_batch() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Batch]:
    """Return vectors, presence and ids of all ranks; the last quarter has no query text, and a row of padding."""
    torch.manual_seed(3)
    vectors = {name: F.normalize(torch.randn(NUM_ROWS, 6, dtype=torch.float64), dim=1) for name in NAMES}
    present = {name: torch.rand(NUM_ROWS) > 0.2 for name in NAMES}
    present["query_text"][18:] = False
    products = torch.randint(15, (NUM_ROWS,))
    relevant = torch.stack([products, torch.randint(-1, 15, (NUM_ROWS,))], dim=1)
    batch = Batch(
        inputs={},
        rows={},
        sample_nums=torch.arange(NUM_ROWS),
        query_keys=torch.arange(NUM_ROWS),
        product_keys=products,
        target_keys=relevant,
        target_grades=(relevant >= 0) * torch.randint(1, 4, relevant.shape),
        reference_keys=relevant.roll(1, 0),
        category_keys=torch.full((NUM_ROWS,), -1),
        is_padding=torch.arange(NUM_ROWS) == NUM_ROWS - 1,
        columns={"weight": torch.rand(NUM_ROWS) + 0.1, "log_frequency": torch.randn(15)[products]},
    )
    return vectors, present, batch


def own_rows(variant: str, rank: int = 0, world_size: int = 1) -> torch.Tensor:
    """Return a rank's rows of the global batch; of one with references, its part of the rows and of the references."""
    parts = torch.arange(NUM_ROWS).view(2 if "references" in variant else 1, world_size, -1)
    return parts[:, rank].flatten()


def with_references(present: dict[str, torch.Tensor], batch: Batch) -> Batch:
    """Turn the second half of the rows into reference products, of which some are equal, or products of rows."""
    half = NUM_ROWS // 2
    for name in ("query_image", "query_text"):
        present[name][half:] = False
    keys = batch.product_keys
    assert len(keys[half:].unique()) < half and torch.isin(keys[half:], keys[:half]).any()
    batch.reference_keys[:half, 0] = keys[half:]
    for name in ("query_keys", "target_keys", "reference_keys"):
        getattr(batch, name)[half:] = -1
    batch.target_grades[half:] = 0
    return batch


def step(variant: str, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return loss, statistics and gradients of a training step on these rows of the global batch."""
    vectors, present, batch = global_batch()
    if "references" in variant:
        batch = replace(with_references(present, batch), num_references=len(rows) // 2)
    loss, options = VARIANTS[variant]
    objective = Objective(PAIRS, loss, NAMES, init_scale=10.0, init_bias=-1.0, scale_per_pair=True, **options).double()
    leaves = {name: part[rows].clone().requires_grad_() for name, part in vectors.items()}
    embeddings = Embeddings(leaves, {name: part[rows] for name, part in present.items()})
    result = objective(embeddings, batch.map(lambda part: part[rows]))
    result.loss.backward()
    parameters = {name: parameter.grad for name, parameter in objective.named_parameters()}
    stats = {"loss": result.loss.detach(), **result.per_pair, **result.stats}
    return {"stats": stats, "leaves": {name: leaf.grad for name, leaf in leaves.items()}, "parameters": parameters}


def run_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    import mim_lightning.losses.objective as module

    calls = []
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce"):
        call = getattr(dist, name)
        setattr(dist, name, lambda *args, call=call, name=name: calls.append(name) or call(*args))
    for world_size in (4, 2):
        if rank >= world_size:
            return
        store = f"file://{folder}/store{world_size}"
        dist.init_process_group("gloo", store, timedelta(seconds=120), world_size, rank)
        for whole_matrix in (0, 2**20):
            module.WHOLE_MATRIX = whole_matrix
            for variant in VARIANTS:
                calls.clear()
                found = {**step(variant, own_rows(variant, rank, world_size)), "calls": [*calls]}
                torch.save(found, f"{folder}/{world_size}-{whole_matrix}-{variant}-{rank}.pt")
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    finished = start(str(path), module=__name__)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_do_what_one_process_does_and_it_what_whole_matrices_do(variant, folder, monkeypatch) -> None:
    expected = step(variant, own_rows(variant))
    monkeypatch.setattr("mim_lightning.losses.objective.WHOLE_MATRIX", 0)
    check(variant, [step(variant, own_rows(variant))], expected)
    for world_size in (2, 4):
        for whole_matrix in (0, 2**20):
            ranks = [torch.load(folder / f"{world_size}-{whole_matrix}-{variant}-{r}.pt") for r in range(world_size)]
            check(variant, ranks, expected)
            # vectors, ids, gradients; counts, or in InfoNCE sums of negatives, then of positives
            is_tiled = whole_matrix == 0 or "graded" in variant
            most = 5 if is_tiled and "sigmoid" not in variant else 4
            assert [len(found["calls"]) for found in ranks] == [most] * world_size


def check(variant, ranks, expected) -> None:
    world_size = len(ranks)
    for part in ("stats", "parameters"):
        for name, value in expected[part].items():
            if name != "negatives_per_row" or world_size == 1:  # which is each rank's own
                # the mean over ranks, as logging and DDP do
                same(name, torch.stack([found[part][name] for found in ranks]).mean(0), value)
    rows = torch.cat([own_rows(variant, rank, world_size) for rank in range(world_size)])
    for name, value in expected["leaves"].items():
        same(name, torch.cat([found["leaves"][name] for found in ranks])[rows.argsort()] / world_size, value)


def same(name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 1e-9 if expected.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=1e-12, msg=lambda text: f"{name}: {text}")


if __name__ == "__main__":  # in a process that has imported everything
    mp.start_processes(run_ranks, args=(sys.argv[1],), nprocs=4, start_method="fork")
