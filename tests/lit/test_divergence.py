"""A loss that is no number is seen within a few steps, on all ranks, and never validated."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mim_lightning.lit.callbacks.divergence import StopDiverged


def feed(losses: list[float], other_rank: list[float] | None = None, every: int = 4, num_batches: int = 10) -> int:
    """Feed losses batch by batch as Lightning does, and return how often ranks were asked."""
    num_asked = 0

    def reduce(tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        nonlocal num_asked
        num_asked += 1
        assert len(tensor) <= every, "what was looked at is forgotten"
        if other_rank is None:
            return tensor
        done = trainer.fit_loop.total_batch_idx + 1
        return (tensor + torch.tensor(other_rank[done - len(tensor) : done])) / 2

    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(reduce=reduce), log_every_n_steps=every)
    callback = StopDiverged()
    for idx, loss in enumerate(losses):
        progress = SimpleNamespace(is_last_batch=(idx + 1) % num_batches == 0)
        loop = SimpleNamespace(batch_progress=progress)
        trainer.fit_loop = SimpleNamespace(total_batch_idx=idx, epoch_loop=loop)
        callback.on_train_batch_end(trainer, None, {"loss": torch.tensor(loss)}, None, idx % num_batches)  # type: ignore
    return num_asked


def test_finite_losses_pass_and_are_read_seldom() -> None:
    assert feed([1.0] * 20) == 6  # after 4, 8 and 10 of each 10


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_step_and_the_last_finite_loss_are_named(bad: float) -> None:
    losses = [5.0, 4.0, 3.5, 3.0, 2.5, bad, bad, bad]
    with pytest.raises(ValueError, match=rf"the loss is {bad} at step 6; the last finite one was 2\.5 at step 5;"):
        feed(losses)


def test_the_end_of_an_epoch_is_always_looked_at() -> None:
    with pytest.raises(ValueError, match="at step 3; the last finite one was 1 at step 2"):
        feed([1.0, 1.0, math.nan], every=50, num_batches=3)


def test_a_loss_that_was_never_finite() -> None:
    with pytest.raises(ValueError, match="the loss is nan at step 1; none before was finite"):
        feed([math.nan] * 4)


def test_one_rank_without_a_number_ends_them_all() -> None:
    with pytest.raises(ValueError, match="the loss is nan at step 2; the last finite one was 2 at step 1"):
        feed([1.0] * 4, other_rank=[3.0, math.nan, 1.0, 1.0])
