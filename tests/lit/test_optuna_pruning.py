"""A trial reports every validation, and ends when it lags behind the others."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from mim_lightning.lit.callbacks.optuna_pruning import OptunaPruning
from mim_lightning.sweep.optuna_study import open_study

optuna = pytest.importorskip("optuna", reason="needs the extra: pip install 'mim-lightning[sweep]'")
MONITOR = "val/image_to_image/hit@1"


@pytest.fixture
def trial(tmp_path: Path) -> dict[str, Any]:
    """Start a trial of a study in which two have finished, at 0.5 and 0.75 after every epoch."""
    storage = str(tmp_path / "study.journal")
    study = open_study(storage, "s")
    for value in (0.5, 0.75):
        asked = study.ask()
        for epoch in range(4):
            asked.report(value, epoch)
        study.tell(asked, value)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2)
    return {"number": study.ask().number, "study": "s", "storage": storage, "pruner": pruner, "warmup_epochs": 0}


def validate(callback: OptunaPruning, value: float, epoch: int, is_global_zero: bool = True, **state: Any) -> None:
    """Let an epoch's validation end, as Lightning does."""
    trainer: Any = SimpleNamespace(
        sanity_checking=False,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        is_global_zero=is_global_zero,
        callback_metrics={MONITOR: value},
        current_epoch=epoch,
        global_step=10 * epoch + 10,
        check_val_every_n_epoch=1,
        val_check_batch=10,
        num_training_batches=10,
        strategy=SimpleNamespace(broadcast=lambda verdict: verdict),
    )
    for name, part in state.items():
        setattr(trainer, name, part)
    callback.on_validation_end(trainer, None)  # type: ignore[arg-type]


def reported(trial: dict[str, Any]) -> dict[int, float]:
    return open_study(trial["storage"], "s").get_trials()[trial["number"]].intermediate_values


def test_a_trial_that_keeps_up_continues(trial: dict[str, Any]) -> None:
    callback = OptunaPruning(MONITOR, trial)
    for epoch in range(3):
        validate(callback, 0.7, epoch)
    validate(callback, math.nan, 3)  # nothing to compare
    assert reported(trial) == {0: 0.7, 1: 0.7, 2: 0.7}


def test_a_trial_that_lags_behind_is_pruned(trial: dict[str, Any]) -> None:
    callback = OptunaPruning(MONITOR, trial)
    with pytest.raises(optuna.TrialPruned, match=rf"pruned after epoch 0: {MONITOR} was 0\.600"):
        validate(callback, 0.6, 0)


def test_every_trial_gets_some_epochs(trial: dict[str, Any]) -> None:
    callback = OptunaPruning(MONITOR, {**trial, "warmup_epochs": 2})
    validate(callback, 0.1, 0)
    validate(callback, 0.1, 1)
    with pytest.raises(optuna.TrialPruned):
        validate(callback, 0.1, 2)


@pytest.mark.parametrize("how", [{"val_check_batch": 5}, {"check_val_every_n_epoch": None}])
def test_each_of_several_validations_in_an_epoch_is_a_report(trial: dict[str, Any], how: dict[str, Any]) -> None:
    trial = {**trial, "warmup_epochs": 1}
    callback, resumed = OptunaPruning(MONITOR, trial), OptunaPruning(MONITOR, trial)
    validate(callback, 0.3, 0, **how)
    validate(callback, 0.2, 0, **how)
    resumed.load_state_dict(callback.state_dict())
    with pytest.raises(optuna.TrialPruned, match=r"pruned after step 7, in epoch 1: "):
        validate(resumed, 0.1, 1, **how, global_step=7)
    assert reported(trial) == {0: 0.3, 1: 0.2, 2: 0.1}


def test_only_fitting_reports(trial: dict[str, Any]) -> None:
    callback = OptunaPruning(MONITOR, trial)
    validate(callback, 0.1, 0, sanity_checking=True)
    validate(callback, 0.1, 0, state=SimpleNamespace(fn=TrainerFn.VALIDATING))
    validate(OptunaPruning(MONITOR, None), 0.1, 0)
    assert reported(trial) == {}


def test_another_rank_gets_the_verdict_and_reports_nothing(trial: dict[str, Any]) -> None:
    callback = OptunaPruning(MONITOR, trial)
    with pytest.raises(optuna.TrialPruned, match="said rank 0"):
        validate(callback, 0.7, 0, False, strategy=SimpleNamespace(broadcast=lambda verdict: "said rank 0"))
    assert reported(trial) == {}


def test_a_failing_storage_stops_no_run(trial: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    open_study(trial["storage"], "s").tell(trial["number"], 0.5)  # another process took the trial for dead
    with caplog.at_level("WARNING"):
        validate(OptunaPruning(MONITOR, trial), 0.1, 0)
    assert "epoch 0 could not be reported" in caplog.text


def test_a_resumed_trial_keeps_what_it_reported(trial: dict[str, Any]) -> None:
    validate(OptunaPruning(MONITOR, trial), 0.7, 0)
    validate(OptunaPruning(MONITOR, trial), 0.8, 1)
    assert reported(trial) == {0: 0.7, 1: 0.8}
