"""The estimate of how often rows meet again equals a count over whole passes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from mim_lightning.data.sampling import shuffle_quality
from mim_lightning.data.sampling.endless import EndlessOrder
from mim_lightning.data.sampling.grouped import GroupedOrder
from mim_lightning.data.sampling.order import StreamedOrder
from mim_lightning.data.sampling.shuffle_quality import measure_shuffle
from mim_lightning.data.sampling.shuffled import ShuffledOrder
from mim_lightning.data.sampling.weighted import WeightedOrder


def meet_again(order: StreamedOrder, num_passes: int = 12) -> float:
    """Return the part of the pairs of shard-mates in a batch that share one in the next pass too."""
    num_rows = sum(order.shard_sizes)
    shard_of = np.repeat(np.arange(len(order.shard_sizes)), order.shard_sizes)
    num_met = num_again = 0
    batch_of = np.zeros((num_passes, num_rows), dtype=int)
    for pass_idx in range(num_passes):
        for batch_idx, batch in enumerate(order.batches(pass_idx)):
            batch_of[pass_idx, batch] = batch_idx
    for former, latter in pairwise(batch_of):
        for shard_idx in range(len(order.shard_sizes)):
            mates = shard_of == shard_idx
            together = (former[mates][:, None] == former[mates]) & ~np.eye(mates.sum(), dtype=bool)
            num_met += together.sum()
            num_again += (together & (latter[mates][:, None] == latter[mates])).sum()
    return num_again / num_met


@pytest.mark.parametrize("window", [2, 8, 40])
def test_it_is_what_two_passes_show(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (20,) * 39 + (7,)
    for order in (
        ShuffledOrder(sizes, 43, window=window),
        ShuffledOrder(sizes, 44, num_streams=4, window=window),
        GroupedOrder(sizes, 44, np.arange(787) % 262, 2, window=window),
    ):
        counted = meet_again(order)
        assert measure_shuffle(order).meet_again == pytest.approx(counted, rel=0.25)
        with monkeypatch.context() as fewer:  # batches than a pass has
            fewer.setattr(shuffle_quality, "MAX_ROWS", 3 * max(window * order.num_streams * 20, 44))
            assert measure_shuffle(order).meet_again == pytest.approx(counted, rel=0.5)


def test_a_window_of_one_batch_is_two_thirds_and_a_global_shuffle_its_fraction() -> None:
    sizes = (2000,) * 200
    small = measure_shuffle(ShuffledOrder(sizes, 16_384, window=8))
    assert small.meet_again == pytest.approx(0.65, abs=0.03) and small.uniform == pytest.approx(0.041, abs=1e-3)
    assert measure_shuffle(ShuffledOrder(sizes, 16_384, window=200)).meet_again == pytest.approx(0.041, abs=2e-3)
    assert measure_shuffle(ShuffledOrder((5,), 8)).meet_again == 1.0
    assert measure_shuffle(ShuffledOrder((1, 1), 1)).meet_again == 0.0


def test_of_weighted_rows_it_counts_draws() -> None:
    weights = np.repeat([1.0, 3.0], 400)
    order = WeightedOrder((20,) * 40, 40, weights, 800, window=40)
    assert measure_shuffle(order).meet_again == pytest.approx(0.05, rel=0.2)


def test_epochs_of_any_length_are_of_the_same_passes() -> None:
    order = ShuffledOrder((20,) * 40, 40)
    assert EndlessOrder(order, 80).passes() == {"": order}
