"""The job script of docs/multi_node: two tasks as on two nodes, stopped before its time ends, queued again, finished.

`srun` and `scontrol` are stand-ins, and both nodes are this host: SLURM itself is not tested.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from mim_lightning.config import compose
from mim_lightning.run import identify
from tests.flow.entry_points import ROOT, read_checkpoint, timeless, weights
from tests.flow.test_preemption import wait_until
from tests.preloaded import PYTHON
from tests.shop import small

SCRIPT = ROOT / "docs" / "multi_node" / "train.sbatch"
PATIENCE = 600  # seconds
COMMANDS = {
    "python": """exec "$MIM_TESTS_PYTHON" "$@" """,
    "scontrol": """echo "$@" >> requeued""",
    # one task a node; a signal goes to all tasks
    "srun": """
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do
  SLURM_PROCID=$node SLURM_NODEID=$node "$@" &
  tasks+=($!)
done
trap 'kill -TERM "${tasks[@]}"' TERM
for task in "${tasks[@]}"; do
  until wait "$task"; code=$?; ! kill -0 "$task" 2> /dev/null; do :; done
  [[ $code == 0 ]] || worst=$code
done
exit ${worst:-0}""",
}


def submit(folder: Path, *words: str) -> subprocess.Popen:
    """Start the script as `sbatch` does, in a folder that has the commands."""
    for name, lines in COMMANDS.items():
        (folder / name).write_text(f"#!/bin/bash\n{lines}\n")
        (folder / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    facts = {"JOB_ID": 7, "JOB_NAME": "train", "NTASKS": 2, "NTASKS_PER_NODE": 1, "NNODES": 2, "JOB_NUM_NODES": 2}
    facts |= {"CPUS_PER_TASK": 1, "LOCALID": 0, "NODELIST": "127.0.0.1"}
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment |= {f"SLURM_{name}": str(value) for name, value in facts.items()} | {"MASTER_ADDR": "127.0.0.1"}
    assert PYTHON in environment
    script = folder / "train.sbatch"
    script.write_text(SCRIPT.read_text().replace("MASTER_PORT=29500", f"MASTER_PORT={port}"))
    command = ["bash", str(script), *words]
    with (folder / "output").open("a") as output:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)


@pytest.mark.slow
def test_a_job_that_is_signaled_saves_and_ends_when_queued_again_as_if_it_had_not_been(shop: Path) -> None:
    plain = [word for word in small(shop, "model=2tower") if word != "trainer=cpu"]
    words = [*plain, "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_sanity_val_steps=0"]
    asleep = shop / "asleep"
    sleeper = (
        f"callbacks.progress_bar={{_target_: tests.flow.kill_callback.SleepAt, step: 1, path: {asleep}, seconds: 9}}"
    )
    runs = {name: identify(compose("train", ["trainer=fsdp", *words, f"paths.runs={shop}/{name}"]))[0] for name in "ab"}

    job = submit(shop, *words, f"paths.runs={shop}/a", sleeper)
    wait_until(asleep.exists, PATIENCE)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(PATIENCE) == 0, (shop / "output").read_text()[-3000:]
    assert (shop / "requeued").read_text() == "requeue 7\n"
    assert read_checkpoint(runs["a"].last_checkpoint)["global_step"] in (2, 3)
    for name, run in runs.items():  # the second one without an interruption
        assert submit(shop, *words, f"paths.runs={shop}/{name}").wait(PATIENCE) == 0, (shop / "output").read_text()[
            -3000:
        ]
        assert run.read_results()
    for name, value in weights(runs["a"]).items():
        assert torch.equal(value, weights(runs["b"])[name]), name
    assert timeless(runs["a"]) == timeless(runs["b"])
