"""Sharded runs of which one process fails or is killed: both end with one line, and the same command resumes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from mim_lightning.config import compose
from mim_lightning.model.checkpoint import verify_checkpoint
from mim_lightning.run import Run, find_resumable, identify
from tests.flow.entry_points import read_checkpoint, start, timeless, weights
from tests.flow.kill_callback import KillInSave
from tests.shop import small

pytestmark = pytest.mark.slow
TWO = ["model=2tower", "trainer.strategy=fsdp2", "trainer.devices=2", "trainer.num_sanity_val_steps=0"]
SECONDS = 115  # a process that hangs is killed after 120
SAVED = 3  # steps: of an epoch
ERRORS = {  # a callback, and the error of the run
    "RaiseAt, step: 4, rank: 0": "error: the callback of a user failed",
    "RaiseAt, step: 4, rank: 1": "error: the callback of a user failed",
    "LimitFiles, step: 4, rank: 0, num_bytes: 20000": "ckpt: File too large",
    "LimitFiles, step: 4, rank: 1, num_bytes: 20000": "ckpt: File too large",
    "NaNAt, steps: [3, 4, 5], rank: 1": "error: training diverged: the loss is nan at step 6",
    "KillAt, step: 4, rank: 1": "process 1 died with exit code -9 SIGKILL",
}


def words_with(shop: Path, callback: str = "", runs: str = "runs") -> list[str]:
    """Return the words of a run with a callback in the place of the bar, which its id does not know."""
    words = small(shop, *TWO, "callbacks.terminate_on_nan.max_skipped=2", f"paths.runs={shop}/{runs}")
    if callback:
        words.append(f"callbacks.progress_bar={{_target_: tests.flow.kill_callback.{callback}}}")
    return words


def fail(run: Run, words: list[str]) -> str:
    """Return the last line of a run that fails, and check that nobody waits for a process that is gone."""
    finished = start(*words)
    ended = time.time()
    assert finished.returncode == 2, finished.stderr[-3000:]
    found = find_resumable(run)
    assert found is not None
    verify_checkpoint(found)
    assert ended - found.stat().st_mtime < SECONDS  # the save before the error
    return finished.stderr.splitlines()[-1]


def assert_goes_on(run: Run, whole: Run, words: list[str]) -> None:
    """Check that a run has its last good checkpoint, and ends from there as the whole one, to the last bit."""
    found = find_resumable(run)
    assert found is not None
    verify_checkpoint(found)
    assert read_checkpoint(found)["global_step"] == SAVED
    finished = start(*words)
    assert finished.returncode == 0, finished.stderr[-3000:]
    for name, value in weights(whole).items():
        assert torch.equal(weights(run)[name], value), name
    assert timeless(run) == timeless(whole)
    assert not [path for path in run.last_checkpoint.parent.iterdir() if path.name.startswith(".")]


def test_an_error_of_one_process_ends_both_and_a_kill_within_a_save_loses_nothing(shop: Path) -> None:
    words = words_with(shop, runs="whole")
    finished = start(*words)
    assert finished.returncode == 0, finished.stderr[-3000:]
    whole, _, _ = identify(compose("train", words))
    for number, (callback, expected) in enumerate(ERRORS.items()):
        run = Run(whole.run_id, shop / f"failed{number}" / whole.run_id)
        last_line = fail(run, words_with(shop, callback, f"failed{number}"))
        assert last_line.startswith("error: ") and expected in last_line, callback
    assert_goes_on(run, whole, words_with(shop, runs=f"failed{number}"))
    for place in KillInSave.PLACES:
        run = Run(whole.run_id, shop / place / whole.run_id)
        last_line = fail(run, words_with(shop, f"KillInSave, step: {SAVED + 1}, place: {place}", place))
        assert "died with exit code -9 SIGKILL" in last_line
        assert_goes_on(run, whole, words_with(shop, runs=place))
