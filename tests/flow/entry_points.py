"""Entry points in processes of their own, and the files of a run."""

import os
import subprocess
from pathlib import Path

import torch

from mim_lightning.run import Run
from tests.preloaded import PYTHON

ROOT = Path(__file__).parents[2]


def start(*arguments: str, module: str = "mim_lightning.train", cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run an entry point in a process of its own."""
    # as many threads as here: sums in another order would differ, and Adam makes much of small differences
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [os.environ[PYTHON], "-m", module, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def weights(run: Run, name: str = "last") -> dict[str, torch.Tensor]:
    path = run.folder / "checkpoints" / f"{name}.ckpt"
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def timeless(run: Run) -> dict[str, float]:
    """Return a run's results without what the clock decides."""
    results = run.read_results()
    assert results is not None
    return {key: value for key, value in results.items() if key != "fit_seconds"}
