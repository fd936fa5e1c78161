"""A loss that is not finite ends the run within a few steps."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer

from mim_lightning.lit.callbacks.terminate_on_nan import TerminateOnNaN


def feed(
    losses: list[float],
    other_rank: list[float] | None = None,
    every: int = 4,
    num_batches: int = 10,
    max_skipped: int = 0,
) -> int:
    """Feed losses batch by batch as Lightning does, and return how often ranks were asked."""
    num_asked = 0

    def reduce(tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        nonlocal num_asked
        num_asked += 1
        assert len(tensor) <= every, "checked values are dropped"
        if other_rank is None:
            return tensor
        done = trainer.fit_loop.total_batch_idx + 1
        return (tensor + torch.tensor(other_rank[done - len(tensor) : done])) / 2

    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(reduce=reduce), log_every_n_steps=every)
    callback = TerminateOnNaN(max_skipped)
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
    with pytest.raises(ValueError, match=rf"the loss is {bad} at step 6; the last finite loss was 2\.5 at step 5;"):
        feed(losses)


def test_the_loss_is_checked_at_the_end_of_every_epoch() -> None:
    with pytest.raises(ValueError, match="at step 3; the last finite loss was 1 at step 2"):
        feed([1.0, 1.0, math.nan], every=50, num_batches=3)


def test_a_loss_that_was_never_finite() -> None:
    with pytest.raises(ValueError, match="the loss is nan at step 1; no loss was finite"):
        feed([math.nan] * 4)


def test_nan_on_one_rank_stops_all_ranks() -> None:
    with pytest.raises(ValueError, match="the loss is nan at step 2; the last finite loss was 2 at step 1"):
        feed([1.0] * 4, other_rank=[3.0, math.nan, 1.0, 1.0])


class Overflowing(LightningModule):
    """Has a loss, or a gradient, that is not finite in some steps."""

    def __init__(self, bad: dict[int, float]) -> None:
        super().__init__()
        self.weight, self.bad = torch.nn.Parameter(torch.ones(3)), bad
        self.norm = torch.nn.BatchNorm1d(3, affine=False)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        # the root of 0 has an infinite gradient
        factor = self.bad.get(batch_idx, 1.0)
        self.norm(torch.stack([batch, batch + 1]) * factor)
        return (self.weight * batch).sum() * factor if factor else (self.weight * 0 * batch).sum().sqrt()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 0.1)


def optimize(
    bad: dict[int, float], batches: list[int], num_skips: int = 3, accumulate_grad_batches: int = 1
) -> torch.Tensor:
    module = Overflowing(bad)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"logger": False, "enable_checkpointing": False, "accumulate_grad_batches": accumulate_grad_batches}
    trainer = Trainer(
        max_epochs=1, callbacks=[TerminateOnNaN(num_skips)], gradient_clip_val=1.0, log_every_n_steps=1, **quiet
    )
    rows = [torch.tensor([1.0, 2.0, 3.0]) * number for number in batches]
    trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=None))  # type: ignore[arg-type]
    return torch.cat([module.weight.detach(), *(buffer.flatten() for buffer in module.norm.buffers())])


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_a_step_that_is_not_finite_leaves_no_trace(bad: float, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in the weights, nor in the moments of the optimizer, nor in running statistics."""
    found = optimize({1: bad, 2: bad}, [1, 5, 5, 2, 3])
    assert torch.equal(found, optimize({}, [1, 2, 3]))
    lines = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert lines[-1].startswith("step 3: 2 steps skipped so far, whose loss or gradient was not finite")


def test_a_skipped_step_of_several_batches_leaves_no_statistics() -> None:
    found = optimize({3: math.nan}, [1, 2, 5, 5, 3, 4], accumulate_grad_batches=2)
    assert torch.equal(found, optimize({}, [1, 2, 3, 4], accumulate_grad_batches=2))


@pytest.mark.parametrize("is_fused", [True, False])
def test_a_fused_optimizer_is_told_to_skip_and_others_get_gradients_of_zero(is_fused: bool) -> None:
    """As on a GPU, where nothing may wait: the meta device stands for it."""
    parameter = torch.nn.Parameter(torch.ones(3, device="meta"))
    parameter.grad = torch.ones(3, device="meta")
    optimizer = torch.optim.AdamW([parameter])
    optimizer.param_groups[0]["fused"] = is_fused
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # as MatchModule sets it
    callback: Any = TerminateOnNaN()
    callback._is_skipping = True
    callback.on_before_optimizer_step(None, None, optimizer)
    assert hasattr(optimizer, "found_inf") == is_fused and (parameter.grad._version == 0) == is_fused


def test_too_many_steps_in_a_row_end_the_run() -> None:
    with pytest.raises(ValueError, match="training diverged: the loss is nan at step 5; the last finite loss was 6 at"):
        optimize(dict.fromkeys(range(1, 9), math.nan), [1] * 9)
    assert optimize({1: math.nan, 3: math.nan, 5: math.nan, 7: math.nan}, [1] * 9, 1).isfinite().all()


def test_a_run_without_a_finite_step_ends_with_an_error() -> None:
    """Also where there are fewer steps than may be skipped in a row: nothing was learned."""
    with pytest.raises(ValueError, match="training diverged: no loss of the 3 steps was finite"):
        optimize(dict.fromkeys(range(3), math.nan), [1] * 3)
    assert optimize({0: math.nan, 1: math.nan}, [1] * 3).isfinite().all()
