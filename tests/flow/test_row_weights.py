"""The columns `weight` and `grade` of a manifest in training: what they change, and when they change nothing."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mim_lightning.run import Run
from tests.flow.entry_points import weights
from tests.shop import write_table

Fit = Callable[..., Run]


@pytest.fixture
def add_columns(shop: Path) -> Callable[..., None]:
    """Give the queries of the shop further columns, each a function of the row's number."""

    def add(**columns: Callable[[int], object]) -> None:
        path = shop / "shop" / "queries.csv"
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        write_table(path, [{**row, **{name: of(i) for name, of in columns.items()}} for i, row in enumerate(rows)])

    return add


def differ(one: Run, other: Run) -> bool:
    pairs = zip(weights(one).values(), weights(other).values(), strict=True)
    return not all(torch.equal(*pair) for pair in pairs)


def test_weights_of_one_train_the_same_model_and_others_another(fit: Fit, add_columns: Callable[..., None]) -> None:
    short = "trainer.max_epochs=1"
    plain = fit(short)
    assert not differ(plain, fit("loss.row_weights=true", short))
    add_columns(weight=lambda i: 1 + i % 3, grade=lambda i: 1 + i % 2)
    folder = "paths.data=${paths.runs}/weighted"
    wanted = ("loss.row_weights=true", "loss.grades=linear", "loss.popularity_correction=true")
    assert differ(plain, fit(*wanted, folder, short))


def test_rows_are_not_weighed_twice(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"loss\.row_weights=true: data/sampling=weighted draws rows by the column"):
        fit("loss.row_weights=true", "data/sampling=weighted")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.grades=cubic", "loss.grades=cubic: choose one of linear, exponential"),
        ("loss.row_weights=3", r"loss.row_weights"),
        ("loss.grades={_target_: mim_lightning.losses.reciprocal_rank, max_grad: 5, _partial_: true}", "max_grade"),
    ],
)
def test_mistakes_are_named(fit: Fit, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(override)
