"""Entry points in processes of their own, and the files of a run."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from mim_lightning.run import Run

ROOT = Path(__file__).parents[2]
# Imports what entry points import, then forks for each request: importing takes longer than most commands.
PRELOADED = """
import json, os, runpy, signal, sys

import lightning.pytorch, torch
import mim_lightning.lit.console, mim_lightning.lit.datamodule, mim_lightning.lit.evaluation, mim_lightning.lit.module
import mim_lightning.lit.trainer, mim_lightning.search.searcher, mim_lightning.training

for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
        signal.alarm(300)
        os.setpgid(0, 0)
        for descriptor, path in enumerate((os.devnull, *request["outputs"])):
            os.dup2(os.open(path, os.O_RDWR), descriptor)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        sys.argv = [request["module"], *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        sys.exit()
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@functools.cache
def _preloaded() -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PRELOADED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def start(*arguments: str, module: str = "mim_lightning.train", cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run an entry point in a process of its own."""
    process = _preloaded()
    assert process.stdin and process.stdout
    with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
        request = {
            "module": module,
            "arguments": arguments,
            "cwd": str(cwd or Path.cwd()),
            # as many threads as here: sums in another order would differ, and Adam makes much of small differences
            "environment": {**os.environ, "PYTHONPATH": str(ROOT)},
            "outputs": [stdout.name, stderr.name],
        }
        print(json.dumps(request), file=process.stdin, flush=True)
        return subprocess.CompletedProcess(arguments, int(process.stdout.readline()), stdout.read(), stderr.read())


def weights(run: Run, name: str = "last") -> dict[str, torch.Tensor]:
    path = run.folder / "checkpoints" / f"{name}.ckpt"
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def timeless(run: Run) -> dict[str, float]:
    """Return a run's results without what the clock decides."""
    results = run.read_results()
    assert results is not None
    return {key: value for key, value in results.items() if key != "fit_seconds"}
