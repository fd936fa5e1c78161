"""Processes that a signal stops: they are gone within seconds, say how to go on, and lose no step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mim_lightning.config import compose
from mim_lightning.run import Run, identify
from tests.flow.entry_points import ROOT, read_checkpoint, start, timeless, weights
from tests.shop import small

BATCHES = ["model=2tower", "callbacks=ema", "callbacks.ema.decay=0.9", "data.batch_size=6", "data.num_workers=1"]


def sender(**options: object) -> str:
    """Return the override of a callback that sends a signal, in the bar's place: a run's id knows other callbacks."""
    written = ", ".join(f"{name}: {value}" for name, value in options.items())
    return f"callbacks.progress_bar={{_target_: tests.flow.kill_callback.SignalAt, {written}}}"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["auto", "fsdp2"])
def test_two_processes_stop_at_the_same_step_and_end_as_if_they_had_not(shop: Path, strategy: str) -> None:
    words = small(shop, *BATCHES, "trainer.devices=2", f"trainer.strategy={strategy}")
    finished = start(*words)
    assert finished.returncode == 0, finished.stderr[-3000:]
    whole, _, _ = identify(compose("train", words))
    parts = [*words, f"paths.runs={shop}/parts"]
    # the other rank alone gets it: amid an epoch, and in the validation after four steps
    for options, step in (({"step": 1}, 3), ({"step": 4, "is_validating": True}, 4)):
        stopped = start(*parts, sender(rank=1, **options))
        assert stopped.returncode == 143, stopped.stderr[-3000:]
        assert stopped.stderr.splitlines()[-1] == f"stopped at step {step} by SIGTERM; the same command resumes"
        last = read_checkpoint(shop / "parts" / whole.run_id / "checkpoints" / "last.ckpt")
        assert last["global_step"] == step
    finished = start(*parts)
    assert finished.returncode == 0, finished.stderr[-3000:]
    limited = [*words, f"paths.runs={shop}/limited"]
    ended = start(*limited, "+trainer.max_time={seconds: 0.001}")
    assert ended.returncode == 0 and "trainer.max_time: ends after step" in ended.stderr, ended.stderr[-3000:]
    early = Run(whole.run_id, shop / "limited" / whole.run_id)
    assert "stopped_after_seconds" in (early.read_results() or {})
    assert 0 < read_checkpoint(early.last_checkpoint)["global_step"] < 4
    finished = start(*limited)
    assert finished.returncode == 0, finished.stderr[-3000:]
    resumed = Run(whole.run_id, shop / "parts" / whole.run_id)
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
        assert torch.equal(weights(early)[name], value), f"{name} of the run that had been ended early"
    # the other was validated once more, where it ended: its best weights may be those
    assert timeless(resumed) == timeless(whole)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_second_signal_stops_at_once(shop: Path, num_processes: int) -> None:
    asleep = shop / "asleep"  # a step that takes far longer than this test
    words = small(shop, *BATCHES, f"trainer.devices={num_processes}", "callbacks.preemption.patience=300")
    words.append(f"callbacks.progress_bar={{_target_: tests.flow.kill_callback.SleepAt, step: 1, path: {asleep}}}")
    command = [sys.executable, "-m", "mim_lightning.train", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_until(asleep.exists)
    children = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    time.sleep(2)
    assert process.poll() is None, "the first one waits for the step"
    process.send_signal(signal.SIGINT)
    lines = process.communicate(timeout=20)[1].splitlines()
    assert process.returncode == 130 and lines[-1] == "stopped by SIGINT"
    wait_until(lambda: not any(Path(f"/proc/{child}/cmdline").exists() for child in children), 20)
    assert not list((shop / "runs").rglob("last.ckpt"))


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def descendants(process_id: int) -> list[int]:
    children = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
    return [int(child) for child in children] + [other for child in children for other in descendants(int(child))]
