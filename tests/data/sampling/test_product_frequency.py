"""How often products are drawn, against counts of what the orders drew."""

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mim_lightning.data.sampling.grouped import GroupedSettings
from mim_lightning.data.sampling.mixture import make_mixture_order
from mim_lightning.data.sampling.order import EpochSettings
from mim_lightning.data.sampling.product_frequency import log_frequencies
from mim_lightning.data.sampling.shuffled import ShuffledSettings
from mim_lightning.data.sampling.weighted import WeightedSettings
from mim_lightning.data.shards.mixture_set import MAIN, ConcatShardSet
from mim_lightning.types import NO_KEY
from tests.data.rows import ColumnSet

NUM_EPOCHS = 40


def popular(seed: int, num_rows: int = 120) -> ColumnSet:
    """Return a set whose product k has about 2^-k of the rows, with weights from 1 to 4; some rows have none."""
    rng = np.random.default_rng(seed)
    products = np.minimum(rng.geometric(0.5, num_rows), 5) * 1000
    products[rng.random(num_rows) < 0.1] = NO_KEY
    return ColumnSet(
        [50, 40, 30],
        product_keys=products,
        category_keys=products,
        weights=rng.integers(1, 5, num_rows).astype(np.float32),
    )


def draw(order: Any, names: list[str | None]) -> dict[str, float]:
    """Return how often each product was drawn in some epochs, relative to the mean over products."""
    counts = Counter(names[row] for e in range(NUM_EPOCHS) for batch in order.batches(e) for row in batch)
    counts.pop(None, None)
    return {name: count / np.mean([*counts.values()]) for name, count in counts.items() if name is not None}


def names_of(keys: np.ndarray, prefix: str = "") -> list[str | None]:
    return [None if key == NO_KEY else f"{prefix}{key}" for key in keys]


def check(found: np.ndarray, names: list[str | None], order: Any, tolerance: float) -> None:
    expected = draw(order, names)
    assert len(expected) >= 5
    for row, name in enumerate(names):
        assert np.exp(found[row]) == pytest.approx(1.0 if name is None else expected[name], rel=tolerance), name


@pytest.mark.parametrize("settings", [ShuffledSettings(), WeightedSettings(), GroupedSettings(samples_per_product=2)])
def test_frequencies_are_those_of_what_is_drawn(settings: Any) -> None:
    shards = popular(1)
    order = settings.for_shards(shards, EpochSettings(8, num_rows=96))
    check(log_frequencies(shards, order), names_of(shards.column("product_keys")), order, tolerance=0.1)


@pytest.mark.parametrize("own_ids", [set(), {"web"}])
def test_a_mixture_counts_its_fractions_and_whether_ids_are_shared(own_ids: set[str]) -> None:
    sets: Any = {MAIN: popular(2), "web": popular(3)}
    both = ConcatShardSet(sets, own_ids)
    fractions = {MAIN: Fraction(3, 4), "web": Fraction(1, 4)}
    order = make_mixture_order(both, fractions, ShuffledSettings(), EpochSettings(8))
    keys = [part.column("product_keys") for part in sets.values()]
    names = [*names_of(keys[0]), *names_of(keys[1], "web:" if own_ids else "")]
    check(log_frequencies(both, order), names, order, tolerance=0.1)


@pytest.mark.filterwarnings("error")
def test_rows_without_products_have_no_frequency() -> None:
    shards = ColumnSet([2, 0, 1], product_keys=np.full(3, NO_KEY), weights=np.ones(3, dtype=np.float32))
    order = ShuffledSettings().for_shards(shards, EpochSettings(2))
    assert log_frequencies(shards, order).tolist() == [0, 0, 0]
