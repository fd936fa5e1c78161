"""Entry points in processes of their own, and the files of a run."""

import csv
import os
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from mim_lightning.model.sharded_checkpoint import read_sharded
from mim_lightning.run import Run
from tests.preloaded import PYTHON

ROOT = Path(__file__).parents[2]


def start(*arguments: str, module: str = "mim_lightning.train", cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run an entry point in a process of its own."""
    # as many threads as here: sums in another order would differ, and Adam makes much of small differences
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [os.environ[PYTHON], "-m", module, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def start_ranks(num_ranks: int, *arguments: str, module: str = "mim_lightning.train") -> subprocess.CompletedProcess:
    """Run a module in several processes with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    shared |= {"GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test", "PYTHONPATH": ROOT, "OMP_NUM_THREADS": 1}
    command = [os.environ[PYTHON], "-m", module, *arguments]
    with tempfile.TemporaryFile("w+") as output:
        ranks = [
            subprocess.Popen(
                command,
                env={**os.environ, **{key: str(value) for key, value in {**shared, **own}.items()}},
                stdout=output,
                stderr=output,
            )
            for own in ({"RANK": rank, "LOCAL_RANK": rank} for rank in range(num_ranks))
        ]
        codes = [rank.wait() for rank in ranks]
        output.seek(0)
        return subprocess.CompletedProcess(command, next((code for code in codes if code), 0), "", output.read())


def weights(run: Run, name: str = "last") -> dict[str, torch.Tensor]:
    path = run.folder / "checkpoints" / f"{name}.ckpt"
    return read_checkpoint(path)["state_dict"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    return read_sharded(path) if path.is_dir() else torch.load(path, map_location="cpu", weights_only=True)


def timeless(run: Run) -> dict[str, float]:
    """Return a run's results without what the clock decides."""
    results = run.read_results()
    assert results is not None
    return {key: value for key, value in results.items() if key != "fit_seconds"}


def state(run: Run) -> dict[str, torch.Tensor]:
    """Return every tensor of the last checkpoint: live and averaged weights, optimizer, schedule, counters."""
    found: dict[str, torch.Tensor] = {}

    def collect(value: Any, place: str) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                collect(part, f"{place}/{key}")
        elif isinstance(value, list):
            collect(dict(enumerate(value)), place)
        elif isinstance(value, torch.Tensor | int | float):
            found[place] = torch.as_tensor(value)

    content = torch.load(run.last_checkpoint, map_location="cpu", weights_only=True)
    parts = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")
    for name in (*parts, "MatchDataModule", "loops", "epoch", "global_step"):
        collect(content[name], name)
    return found


def logged(run: Run) -> list[dict[str, str]]:
    """Return the rows of the log without what the clock decides, and without means over an epoch that was stopped."""
    left_out = ("train/rows_per_second", "train/data_wait", "train/epoch_loss", "train/time", "train/seconds")
    with (run.folder / "csv" / "version_0" / "metrics.csv").open(newline="") as file:
        rows = [
            {name: cell for name, cell in row.items() if cell and not name.startswith(left_out)}
            for row in csv.DictReader(file)
        ]
    return [row for row in rows if row.keys() - {"epoch", "step"}]
