"""A run with a damaged checkpoint resumes from a valid one; no checkpoint with NaN weights is written."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mim_lightning.model.checkpoint import verify_checkpoint
from mim_lightning.run import Run
from tests.flow.entry_points import timeless, weights

Fit = Callable[..., Run]


def test_a_damaged_last_checkpoint_falls_back_to_the_best(fit: Fit, capfd: pytest.CaptureFixture[str]) -> None:
    run = fit()
    whole = timeless(run)
    content = run.last_checkpoint.read_bytes()
    for damaged in (content[: len(content) // 2], content[:5000] + bytes(100) + content[5100:], b""):
        run.last_checkpoint.write_bytes(damaged)
        run.results_path.unlink()
        capfd.readouterr()
        fit()
        warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning:")]
        assert len(warnings) == 1 and "last.ckpt: damaged (" in warnings[0] and "from best.ckpt" in warnings[0]
        assert timeless(run) == pytest.approx(whole, abs=1e-6)
        verify_checkpoint(run.last_checkpoint)
    run.last_checkpoint.unlink()
    run.results_path.unlink()
    fit()
    assert "there is no last.ckpt: resumed from best.ckpt" in capfd.readouterr().out
    assert run.last_checkpoint.exists(), "also where no step was left to do"
    run.results_path.unlink()
    for path in (run.last_checkpoint, run.best_checkpoint):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"last\.ckpt: damaged .*; there is no other to resume from; remove it"):
        fit()


def test_weights_with_nan_are_never_saved(fit: Fit, tmp_path: Path) -> None:
    diverges = ["callbacks.last.every_n_train_steps=1", "optim=sgd", "optim.lr=1e30", "run.id=diverging"]
    diverges += ["callbacks.terminate_on_nan.max_skipped=0"]  # else steps that would write NaN are skipped
    with pytest.raises(ValueError, match=r"training diverged: 'matcher.* is not finite at step"):
        fit(*diverges)
    checkpoints = tmp_path / "runs" / "diverging" / "checkpoints"
    for path in checkpoints.glob("*"):
        run = Run("diverging", checkpoints.parent)
        assert all(torch.isfinite(value).all() for value in weights(run, path.stem).values()), path
