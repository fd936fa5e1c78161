"""Epochs of any length: every row once before any twice, and any position is reached."""

from __future__ import annotations

from itertools import chain, count, islice

import numpy as np
import pytest

from mim_lightning.data.sampling.endless import EndlessOrder, in_epochs
from mim_lightning.data.sampling.grouped import GroupedOrder
from mim_lightning.data.sampling.order import BatchOrder
from mim_lightning.data.sampling.shuffled import ShuffledOrder
from tests.data.rows import random_sizes


def random_passes(seed: int) -> BatchOrder:
    rng = np.random.default_rng(seed)
    sizes, batch_size = tuple(random_sizes(rng)), 2 * int(rng.integers(1, 40))
    options = {"seed": seed, "window": int(rng.integers(1, 5))}
    if seed % 2:
        return GroupedOrder(sizes, batch_size, rng.integers(0, 9, sum(sizes)), 2, **options)
    return ShuffledOrder(sizes, batch_size, num_streams=int(rng.integers(1, len(sizes) + 1)), **options)


@pytest.mark.parametrize("seed", range(16))
def test_epochs_cut_the_sequence_of_passes(seed: int) -> None:
    passes = random_passes(seed)
    order = EndlessOrder(passes, 1 + int(np.random.default_rng(seed).integers(3 * passes.num_samples)))
    endless = chain.from_iterable(passes.batches(pass_idx) for pass_idx in count())
    counts = np.zeros(passes.num_samples, dtype=int)
    for epoch in range(5):
        whole = [batch.tolist() for batch in order.batches(epoch)]
        assert whole == [batch.tolist() for batch in islice(endless, order.num_batches)]
        for done in range(order.num_batches + 1):
            rest = order.batches(epoch, done * order.global_batch_size)
            assert [batch.tolist() for batch in rest] == whole[done:]
        for batch in whole:
            counts += np.bincount(batch, minlength=len(counts))
            assert len(batch) == len(set(batch)) and counts.max() - counts.min() <= 1, "none twice before all once"


def test_an_epoch_has_the_rows_that_were_asked_for() -> None:
    passes = ShuffledOrder((50,) * 20, 300)  # four batches a pass, the last of 100 rows
    assert in_epochs(passes, None) is passes
    for num_rows, num_batches in ((1, 1), (300, 1), (301, 2), (1000, 4), (1001, 5), (10_000, 40)):
        order = EndlessOrder(passes, num_rows)
        assert order.num_batches == num_batches
        num_seen = sum(len(batch) for epoch in range(4) for batch in order.batches(epoch))
        assert num_seen == sum(map(len, islice(chain.from_iterable(map(passes.batches, count())), 4 * num_batches)))
    assert num_seen == 40_000, "of whole passes exactly"
    same = EndlessOrder(passes, 1000)
    assert all((a == b).all() for a, b in zip(same.batches(2), passes.batches(2), strict=True))


def test_its_position_is_of_its_length() -> None:
    passes = ShuffledOrder((50,) * 20, 300)
    assert EndlessOrder(passes, 500).state_key() == {**passes.state_key(), "rows_per_epoch": 500}
    assert passes.state_key()["rows_per_epoch"] is None
