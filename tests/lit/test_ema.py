"""The averaged weights are validated, written, fingerprinted and loaded; training goes on with the live ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mim_lightning.config import compose
from mim_lightning.evaluate import evaluate
from mim_lightning.inference import load
from mim_lightning.lit import EMA
from mim_lightning.model.checkpoint import load_matcher
from mim_lightning.run import Run
from tests.flow.entry_points import timeless

Fit = Callable[..., Run]
OURS = ["callbacks=ema", "callbacks.ema.decay=0.9"]
LIGHTNINGS = ["+callbacks.ema={_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.9}"]


def content(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.mark.parametrize("ema", [OURS, pytest.param(LIGHTNINGS, marks=pytest.mark.slow)])
def test_every_reader_takes_the_average_of_the_weights(
    fit: Fit, ema: list[str], capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    naive: dict[str, torch.Tensor] = {}  # average of the live weights, in float64
    update = AveragedModel.update_parameters

    def follow(self: AveragedModel, model: nn.Module) -> None:
        for name, value in model.state_dict().items():
            naive[name] = 0.9 * naive[name] + 0.1 * value if name in naive else value.double()
        update(self, model)

    monkeypatch.setattr(AveragedModel, "update_parameters", follow)
    run = fit(*ema, "optim.lr=0.02")
    last, best = content(run.last_checkpoint), content(run.best_checkpoint)
    assert int(last["averaging_state"]["n_averaged"]) == last["global_step"] == 6
    for name, value in last["state_dict"].items():
        torch.testing.assert_close(value.double(), naive[name], rtol=0, atol=1e-6)
    live = best["current_model_state"]
    assert any(not torch.equal(value, live[name]) for name, value in best["state_dict"].items())
    loaded = load_matcher(run.best_checkpoint)  # raises where the fingerprint is of other weights
    for name, value in loaded.matcher.state_dict().items():
        torch.testing.assert_close(value, best["state_dict"][f"matcher.{name}"], rtol=0, atol=0)
    assert load(run.best_checkpoint).fingerprint == loaded.fingerprint
    assert loaded.fingerprint in (run.folder / "evaluation" / "record.json").read_text()
    output = run.folder.parent / "evaluated"
    evaluated = evaluate(compose("evaluate", [f"checkpoint={run.best_checkpoint}", f"output={output}", "trainer=cpu"]))
    recorded = timeless(run)
    assert evaluated == {key: recorded[key] for key in evaluated}
    assert "WeightAveraging" not in capfd.readouterr().err


def test_integers_are_copied_and_not_averaged() -> None:
    model = nn.BatchNorm1d(3)
    model.register_buffer("index", torch.arange(2000))
    averaged = AveragedModel(model, use_buffers=True, **EMA(decay=0.9999)._kwargs)
    for number in range(5):
        model(torch.randn(8, 3, generator=torch.Generator().manual_seed(number)))
        averaged.update_parameters(model)
    assert torch.equal(averaged.module.index, model.index)
    assert averaged.module.num_batches_tracked == 5
    assert not torch.equal(averaged.module.running_mean, model.running_mean)


def test_before_its_start_the_average_is_the_live_model() -> None:
    ema, module = EMA(update_starting_at_step=5), nn.Linear(2, 2)
    ema._average_model = AveragedModel(module, **ema._kwargs)
    trainer: Any = SimpleNamespace(global_step=3)
    with torch.no_grad():
        module.weight += 1
    ema.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
    checkpoint = {"state_dict": module.state_dict()}
    ema.on_save_checkpoint(trainer, module, checkpoint)  # type: ignore[arg-type]
    assert torch.equal(checkpoint["state_dict"]["weight"], module.weight)


@pytest.mark.parametrize("decay", [1, -0.1, True, "x"])
def test_a_decay_that_never_averages_is_refused(decay: Any) -> None:
    with pytest.raises(ValueError, match=r"callbacks\.ema\.decay=.*: give a number from 0 to below 1"):
        EMA(decay=decay)


def test_a_checkpoint_without_the_average_is_refused(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"callbacks\.best\.save_weights_only=true: would hold the live weights"):
        fit(*OURS, "+callbacks.best.save_weights_only=true")
