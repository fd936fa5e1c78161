"""The module's own business: what a step draws, logs and says; unused towers are frozen, fused gradients clipped."""

from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins import MixedPrecision
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from mim_lightning.lit.callbacks.throughput import Throughput
from mim_lightning.lit.module import MatchModule, StepSettings, freeze_unused
from mim_lightning.lit.trainer import keep_batches
from mim_lightning.losses.contrastive import info_nce
from mim_lightning.losses.objective import Objective, Pair
from mim_lightning.model.matcher import Matcher
from tests.model.test_matcher import image_tower, make_batch, text_tower


def test_a_tower_without_pairs_is_frozen_and_one_reached_by_a_fusion_is_not() -> None:
    towers = {"query_image": image_tower(), "product_text": text_tower(), "query_text": text_tower()}
    matcher = Matcher(
        towers, {"product_image": "query_image"}, {"product": {"product_image": 1.0, "product_text": 1.0}}
    )
    objective = Objective({"a": Pair("query_image", "product")}, info_nce, matcher.names)
    assert freeze_unused(matcher, objective) == ("query_text",)
    assert not any(p.requires_grad for p in matcher.tower("query_text").parameters())
    assert all(p.requires_grad for p in matcher.tower("product_text").parameters())


def test_gradients_are_clipped_for_a_fused_optimizer_in_mixed_precision() -> None:
    matcher = Matcher({"query_image": image_tower(), "product_text": text_tower()}, {}, {})
    objective = Objective({"a": Pair("query_image", "product_text")}, info_nce, matcher.names)
    fused = partial(torch.optim.AdamW, fused=True)
    module = MatchModule(matcher, objective, fused, schedule=lambda optimizer, _: LambdaLR(optimizer, float))
    module.trainer = SimpleNamespace(estimated_stepping_batches=1)  # type: ignore[assignment]
    optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index]
    with torch.no_grad():
        for parameter in matcher.parameters():
            parameter.grad = torch.full_like(parameter, 10.0)
    plugin = MixedPrecision("bf16-mixed", "cpu")
    plugin.clip_gradients(optimizer, 1.0)  # raises for what would unscale gradients itself
    squares = sum(parameter.grad.square().sum() for parameter in matcher.parameters())
    assert 0.99 < squares < 1.01


class Recorder(Callback):
    """Notes the seed of every batch, and stops after the batch `stop_after`."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.seeds: list[int] = []
        self.losses: list[float] = []
        self.num_logged: Counter[str] = Counter()
        self.stop_after = stop_after

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Any) -> None:
        self.seeds.append(torch.initial_seed())
        self.losses.append(float(loss))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = trainer.should_stop or batch_idx == self.stop_after
        self.num_logged = pl_module.num_logged


class Rows(DummyLogger):
    """Keeps what Lightning logs, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:  # type: ignore[override]
        self.rows.append((step or 0, dict(metrics)))


class Module(MatchModule):
    """Says only what its settings change: there is no data module to describe. Counts what it logs."""

    num_logged: Counter[str]

    def on_fit_start(self) -> None:
        self.num_logged = Counter()
        self._describe_step(4)

    def log(self, name: str, *arguments: Any, **options: Any) -> None:
        self.num_logged[name] += 1
        super().log(name, *arguments, **options)


def train(
    *, step: dict[str, int] | None = None, norm: bool = False, num_batches: int = 6, **options: Any
) -> tuple[Recorder, list[tuple[int, dict[str, float]]]]:
    torch.manual_seed(0)
    matcher = Matcher({"query_image": image_tower(), "product_text": text_tower()}, {}, {})
    if norm:
        matcher.tower("query_image").encoder.append = torch.nn.BatchNorm1d(2)
    module = Module(
        matcher,
        Objective({"a": Pair("query_image", "product_text")}, info_nce, matcher.names),
        torch.optim.SGD,
        schedule=lambda optimizer, _: torch.optim.lr_scheduler.ConstantLR(optimizer),
        config={"seed": 5},
        step=StepSettings(**(step or {})),
    )
    recorder, rows = Recorder(options.pop("stop_after", None)), Rows()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[recorder, Throughput()],
        logger=rows,
        **{"log_every_n_steps": 2, **quiet, **options},
    )
    keep_batches(trainer)
    trainer.fit(module, DataLoader([make_batch()] * num_batches, batch_size=None, collate_fn=lambda batch: batch))  # type: ignore[arg-type]
    return recorder, rows.rows


def test_noise_depends_on_the_step_and_with_accumulation_on_the_batch_within_it() -> None:
    assert train()[0].seeds == [hash((5, step, 0)) % 2**63 for step in range(6)]
    seeds = train(accumulate_grad_batches=4)[0].seeds
    assert seeds == [hash((5, idx // 4, 0, idx % 4)) % 2**63 for idx in range(6)]


def test_a_step_that_nobody_reads_logs_no_scalar_but_what_the_progress_bar_shows() -> None:
    """Lightning takes a third of a millisecond for each."""
    for has_bar in (False, True):
        counts = train(enable_progress_bar=has_bar)[0].num_logged
        assert (counts["train/loss"], counts["train/loss/a"], counts["train/logit_scale"]) == (3, 3, 3)
        assert counts["train/running_loss"] == (6 if has_bar else 3)


def test_settings_of_a_step_say_what_they_change(caplog: pytest.LogCaptureFixture) -> None:
    train(accumulate_grad_batches=3, fast_dev_run=True)
    assert "adds no negatives; data.batch_size=12 step.micro_batch_size=4 does" in caplog.text
    caplog.clear()
    train(step={"micro_batch_size": 2}, norm=True, fast_dev_run=True)
    assert "step.micro_batch_size=2: batch normalization has the statistics of each micro-batch" in caplog.text
    caplog.clear()
    train(step={"micro_batch_size": 2}, fast_dev_run=True)
    assert "micro" not in caplog.text and "adds no" not in caplog.text
    with pytest.raises(ValueError, match=r"step\.micro_batch_size=0: give a whole number above 0, or null"):
        StepSettings(0)


def test_scalars_are_those_of_the_step_that_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = train()
    monkeypatch.setattr("mim_lightning.lit.module.is_free", lambda *_: False)  # as on a GPU
    monkeypatch.setattr("mim_lightning.lit.step_means.is_free", lambda *_: False)
    _, read_seldom = train()
    for (step, expected), (same_step, found) in zip(plain, read_seldom, strict=True):
        assert step == same_step and set(expected) == set(found)
        for name, value in expected.items():
            assert name.startswith(("train/seconds", "train/rows", "train/data")) or found[name] == value, name
    by_step = dict(read_seldom[:3])
    assert set(by_step) == {1, 3, 5}
    for row in by_step.values():
        parts = {name.rsplit("/", 1)[-1]: value for name, value in row.items() if name.startswith("train/seconds/")}
        assert set(parts) == {"data_wait", "forward", "loss", "backward", "optimizer", "step"}
        assert min(parts.values()) >= 0 and sum(parts.values()) <= 2 * parts["step"]
    assert "train/rows_per_second" in read_seldom[-1][1], "of an epoch, whatever its length"
    # training that a callback stops logs the step it ends with
    recorder, rows = train(log_every_n_steps=100, stop_after=2)
    (row,) = [row for _, row in rows if "train/loss" in row]
    assert row["train/loss"] == pytest.approx(recorder.losses[-1]) and len(recorder.losses) == 3
