"""Composed rows that bring the product on their photo: however they are computed, the weights end equal."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mim_lightning.config import compose
from mim_lightning.run import Run, identify
from tests.flow.entry_points import start, weights
from tests.shop import small, write_table

ON = ("data.reference_products=true", "data.batch_size=4", "trainer.precision=64-true")


@pytest.fixture(autouse=True)
def composed(shop: Path) -> None:
    """Let every other training row of the shop ask for another product than the one on its photo."""
    path = shop / "shop" / "queries.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        is_composed = row["split"] == "train" and number % 2
        row["shown_product_id"] = f"{(int(row['product_id']) + 1) % 7:03d}" if is_composed else row["product_id"]
    write_table(path, rows)


def is_close(one: Run, other: Run) -> bool:
    pairs = zip(weights(one).values(), weights(other).values(), strict=True)
    return all(torch.allclose(*pair, rtol=0, atol=1e-9) for pair in pairs)


def test_references_change_what_is_learned_and_have_features_of_frozen_encoders(
    fit: Callable[..., Run], shop: Path
) -> None:
    short = (*ON, "trainer.max_epochs=1", "model.towers.product_text.train=frozen")
    on = fit(*short)
    assert not is_close(on, fit(*short, "data.reference_products=false"))
    cached = ("data.feature_cache.enabled=true", f"data.feature_cache.folder={shop}/features")
    assert is_close(on, fit(*short, *cached, f"paths.runs={shop}/cached"))


@pytest.mark.slow
def test_two_processes_and_micro_batches_end_as_one(fit: Callable[..., Run], shop: Path) -> None:
    one, more = fit(*ON), (f"paths.runs={shop}/two", "trainer.devices=2")
    assert is_close(one, fit(*ON, "step.micro_batch_size=3"))
    finished = start(*small(shop, *ON, *more))
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert is_close(identify(compose("train", small(shop, *ON, *more)))[0], one)


def test_references_are_not_counted_in_popularity(fit: Callable[..., Run]) -> None:
    with pytest.raises(ValueError, match=r"loss\.popularity_correction=true: counts how often rows draw a product"):
        fit(*ON, "loss.popularity_correction=true")
