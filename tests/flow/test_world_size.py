"""Two processes are as one: equal weights, equal numbers, one folder a job, also inside a multirun."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mim_lightning.config import compose
from mim_lightning.run import Run, identify
from tests.flow.entry_points import start, timeless, weights
from tests.shop import small

MODELS = ("2tower", "4tower")
# 21 rows: one batch of 16 and one of 5, which two processes fill up; in float64, for Adam makes much of rounding
EXACT = ["data.batch_size=16", "trainer.precision=64-true"]


@pytest.fixture
def two_processes(shop: Path) -> Path:
    """Run a sweep over tower counts with two processes a job."""
    runs = shop / "two"
    finished = start("-m", *small(shop, *EXACT, f"paths.runs={runs}", "trainer.devices=2", f"model={','.join(MODELS)}"))
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "2 jobs" in finished.stdout and "model=4tower" in finished.stdout
    return runs


def test_one_process_and_two_end_equal(shop: Path, two_processes: Path, fit: Callable[..., Run]) -> None:
    for model in MODELS:
        one = fit(*EXACT, f"model={model}")
        two = identify(compose("train", small(shop, *EXACT, f"paths.runs={two_processes}", f"model={model}")))[0]
        assert two.run_id == one.run_id
        for name, value in weights(one).items():
            torch.testing.assert_close(weights(two)[name], value, rtol=0, atol=1e-9)
        assert timeless(two) == pytest.approx(timeless(one), abs=1e-9)
    folders = [path for path in two_processes.iterdir() if path.name != "sweeps"]
    assert len(folders) == len(MODELS), "one folder a job"
