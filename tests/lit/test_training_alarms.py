"""Each alarm is provoked, printed once, and silent where all is well."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn import functional

from mim_lightning.lit import RetrievalEval, TrainingAlarms
from mim_lightning.lit.callbacks.training_alarms import mean_cosine
from mim_lightning.losses import info_nce, sigmoid
from mim_lightning.run import Run

MONITOR = "val/image_to_product/hit@1"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    """Return the warnings that contain some words."""
    return lambda words: [record.getMessage() for record in caplog.records if words in record.getMessage()]


def test_a_run_that_learns_nothing_says_why_once(fit: Callable[..., Run], said: Callable[[str], list[str]]) -> None:
    alarms = ["flat_steps=2", "flat_tolerance=100", "scale_steps=2", "max_data_wait=1e-9", "max_cosine=1e-3"]
    fit(
        *("model=2tower", "optim.lr=0.0", "loss.init_scale=100", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"),
        *(f"callbacks.training_alarms.{word}" for word in alarms),
    )
    (flat,) = said("the loss of a pair has been that of guessing among ")
    assert flat.startswith("step ") and "for 2 steps: nothing is learnt" in flat
    (scale,) = said("has been at its maximum, loss.max_scale=100, for 2 steps")
    assert "the logit scale has been" in scale
    (wait,) = said("training waited for data in ")
    assert wait.startswith("epoch 1:") and wait.endswith("raise data.num_workers")
    collapsed = said("gives nearly one vector for all rows, their mean cosine is ")
    assert len(collapsed) == len(set(collapsed)) and all(line.startswith("epoch 0: tower '") for line in collapsed)
    assert collapsed


def trainer_with(metrics: dict[str, float], step: int = 0, initial: float = 0.5) -> Any:
    evaluation = RetrievalEval({"image_to_product": {"query": "query_image", "gallery": "product"}}, MONITOR)
    evaluation.initial = {MONITOR: initial}
    return SimpleNamespace(
        callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
        callbacks=[evaluation],
        global_step=step,
        current_epoch=step,
        is_global_zero=True,
        sanity_checking=False,
        fast_dev_run=False,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        _logger_connector=SimpleNamespace(should_update_logs=True),
    )


def test_a_metric_below_that_of_the_initial_model_is_said_once(said: Callable[[str], list[str]]) -> None:
    alarms = TrainingAlarms(MONITOR)
    for epoch, value in enumerate((0.5, 0.6, 0.25, 0.2)):
        alarms.on_validation_end(trainer_with({MONITOR: value}, epoch), None)  # type: ignore[arg-type]
    assert said("") == [
        f"epoch 2: {MONITOR} is 0.250, below 0.500 before training; try a smaller optim.lr or optim.lr_scales.encoder"
    ]
    resumed = TrainingAlarms(MONITOR)
    resumed.load_state_dict(alarms.state_dict())
    resumed.on_validation_end(trainer_with({MONITOR: 0.1}, 5), None)  # type: ignore[arg-type]
    assert len(said("")) == 1


def feed(metrics: list[dict[str, float]], loss: Any = info_nce) -> None:
    objective = SimpleNamespace(loss=loss, contrastive={"a": None, "b": None}, max_scale=100.0)
    alarms = TrainingAlarms(MONITOR, flat_steps=20, scale_steps=20)
    for number, values in enumerate(metrics):
        trainer = trainer_with({f"train/{name}": value for name, value in values.items()}, 10 * number)
        alarms.on_train_batch_end(trainer, SimpleNamespace(objective=objective), None, None, number)  # type: ignore[arg-type]


GUESSING = {"loss/a": 4.15, "loss/b": 4.17, "negatives_per_row": 63.0}  # log 64 = 4.159


@pytest.mark.parametrize(
    ("metrics", "loss", "expected"),
    [
        ([GUESSING] * 3, info_nce, ["the loss of a pair has been that of guessing among 64 rows, 4.16, for 20 steps"]),
        ([GUESSING] * 3, sigmoid, []),
        ([GUESSING, {**GUESSING, "loss/a": 3.5}] * 3, info_nce, []),
        ([{"logit_scale": 99.99}] * 4, info_nce, ["the logit scale has been at its maximum, loss.max_scale=100"]),
        ([{"logit_scale": 99.99}, {"logit_scale": 90.0}] * 4, info_nce, []),
        ([{"logit_scale/a": 0.5}, {"logit_scale/a": 2e3}] * 2, info_nce, ["the logit scale/a is 0.5: it diverges"]),
        ([{"logit_scale": 14.3}] * 4, info_nce, []),
    ],
)
def test_the_loss_and_its_scale(
    metrics: list[dict[str, float]], loss: Any, expected: list[str], said: Callable[[str], list[str]]
) -> None:
    feed(metrics, loss)
    assert len(said("")) == len(expected)
    for line, words in zip(said(""), expected, strict=True):
        assert words in line


def test_the_mean_cosine_is_that_of_all_pairs_of_rows() -> None:
    vectors_ND = functional.normalize(torch.randn(9, 4, dtype=torch.float64), dim=1)
    cosines = [float(vectors_ND[i] @ vectors_ND[j]) for i in range(9) for j in range(9) if i != j]
    total_E = torch.cat([vectors_ND.sum(0), torch.tensor([9.0])])
    assert mean_cosine(total_E) == pytest.approx(sum(cosines) / len(cosines))
    assert mean_cosine(torch.tensor([1.0, 0.0, 1.0])) is None
