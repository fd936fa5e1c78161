"""Whole runs on a shop of a few products, in this process or as a user starts them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mim_lightning.config import compose
from mim_lightning.run import Run, identify
from mim_lightning.train import train
from tests.shop import small, write_shop

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    write_shop(tmp_path / "shop", num_products=7)
    return tmp_path


@pytest.fixture
def fit(shop: Path) -> Callable[..., Run]:
    """Train in this process and return the run."""

    def call(*overrides: str) -> Run:
        config = compose("train", small(shop, *overrides))
        train(config)
        return identify(config)[0]

    return call


def start(*arguments: str, module: str = "mim_lightning.train", cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run a door as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        timeout=300,
    )


def weights(run: Run, name: str = "last") -> dict[str, torch.Tensor]:
    path = run.folder / "checkpoints" / f"{name}.ckpt"
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
