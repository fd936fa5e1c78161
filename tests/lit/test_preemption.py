"""A run that is stopped anywhere and resumed ends bit for bit as one that was not, in weights, logs and results."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import timer

from mim_lightning import interruption
from mim_lightning.interruption import Interruption
from mim_lightning.io.paths import PathOrUrl
from mim_lightning.lit import Preemption
from mim_lightning.lit.trainer import AtomicCheckpointIO
from mim_lightning.run import Run
from tests.flow.entry_points import logged, state, timeless

Fit = Callable[..., Run]
# five batches and three steps an epoch, the last of one batch
OPTIONS = [
    "model=2tower",
    "callbacks=ema",
    "callbacks.ema.decay=0.9",
    "data.batch_size=5",
    "trainer.accumulate_grad_batches=2",
]
OPTIONS += ["trainer.log_every_n_steps=1", "trainer.max_epochs=3"]


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Handle signals as an entry point does, but end no process late."""
    former = {signum: signal.getsignal(signum) for signum in interruption.SIGNALS}
    monkeypatch.setattr(interruption, "_owner", os.getpid())
    monkeypatch.setattr(interruption, "_raising", {signal.SIGTERM})
    monkeypatch.setattr(interruption, "exit_after", lambda *_: None)
    yield
    for signum, handler in former.items():
        signal.signal(signum, handler)


def stop_at(fit: Fit, *words: str, step: int, is_validating: bool = False) -> str:
    """Run until a signal stops it, and return where."""
    sender = f"step: {step}, is_validating: {is_validating}"
    # in the bar's place, for the run's id knows other callbacks
    with pytest.raises(Interruption) as stopped:
        fit(*words, f"callbacks.progress_bar={{_target_: tests.flow.kill_callback.SignalAt, {sender}}}")
    assert stopped.value.signum == signal.SIGTERM and interruption.requested_stop() is None
    return stopped.value.where


# by the steps finished: in the last step of an epoch, which a validation follows; amid one; in a validation; at the end
STOPS = [(2, False, 3)], [(1, False, 2), (2, False, 3), (6, True, 6), (8, False, 9)]


# validation every three steps, in epochs of eight that end within a pass of five; a step ends with each batch
EARLY = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: '${monitor}', mode: max, patience: 50}"
BY_STEPS = [*OPTIONS, "trainer.accumulate_grad_batches=1", "trainer.max_epochs=2", "data.rows_per_epoch=35"]
BY_STEPS += ["trainer.val_check_interval=3", "trainer.check_val_every_n_epoch=null", f"+callbacks.early={EARLY}"]
# after a validation; before one that is due; in one, in each of two epochs
STEP_STOPS = [(4, False, 5), (5, False, 6), (9, True, 9), (12, True, 12)]


@pytest.mark.parametrize(
    ("options", "stops"),
    [
        (OPTIONS, STOPS[0]),
        pytest.param(OPTIONS, STOPS[1], marks=pytest.mark.slow),
        pytest.param(BY_STEPS, STEP_STOPS, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("signals")
def test_a_run_that_is_stopped_anywhere_ends_as_one_that_was_not(
    fit: Fit, shop: Path, options: list[str], stops: list
) -> None:
    whole = fit(*options)
    parts = [*options, f"paths.runs={shop}/parts"]
    for step, is_validating, stops_at in stops:
        assert stop_at(fit, *parts, step=step, is_validating=is_validating) == f"at step {stops_at}"
        last = shop / "parts" / whole.run_id / "checkpoints" / "last.ckpt"
        assert torch.load(last, weights_only=True)["global_step"] == stops_at
    resumed = fit(*parts)
    assert resumed.run_id == whole.run_id
    expected, found = state(whole), state(resumed)
    assert expected.keys() == found.keys()
    different = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert different == []
    assert timeless(resumed) == timeless(whole)
    assert logged(resumed) == logged(whole)
    history = Path("browser") / "history.jsonl"
    assert (resumed.folder / history).read_text() == (whole.folder / history).read_text()


@pytest.mark.usefixtures("signals")
def test_a_run_that_a_time_limit_ends_has_results_and_goes_on_with_more_time(
    fit: Fit, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validated by steps, it is stopped by a signal, then ended by the clock, and given as much time as it needs."""
    whole = fit(*BY_STEPS)
    seconds = count()  # one passes whenever the clock is read, which it is in every step
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    parts = [*BY_STEPS, f"paths.runs={shop}/parts"]
    limited = [*parts, "+trainer.max_time={seconds: 20}"]
    assert stop_at(fit, *limited, step=4) == "at step 5"
    ended = fit(*limited)
    early = ended.read_results()
    last = torch.load(ended.last_checkpoint, weights_only=True)
    assert ended.run_id == whole.run_id and early is not None and early["stopped_after_seconds"] >= 20
    assert 5 < last["global_step"] < 15 and last["global_step"] % 3, "validated out of turn"
    assert fit(*limited).read_results() == early, "it is not begun again"
    ended.results_path.unlink()  # as if killed before they were written
    again = fit(*limited).read_results()
    assert again is not None and again["step"] == early["step"] and again["stopped_after_seconds"] >= 20
    assert torch.load(ended.last_checkpoint, weights_only=True)["global_step"] == last["global_step"]
    resumed = fit(*parts)
    results = resumed.read_results()
    assert results is not None and "stopped_after_seconds" not in results
    expected, found = state(whole), state(resumed)
    counted = ("loops/fit_loop/epoch_loop.val_loop", "loops/validate_loop")  # of one validation more
    different = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert [name for name in different if not name.startswith(counted)] == []
    trained = [row for row in logged(whole) if not any(name.startswith("val/") for name in row)]
    assert [row for row in logged(resumed) if not any(name.startswith("val/") for name in row)] == trained


@pytest.mark.slow
@pytest.mark.usefixtures("signals")
def test_a_full_disk_keeps_the_former_checkpoint(fit: Fit, monkeypatch: pytest.MonkeyPatch, shop: Path) -> None:
    write = AtomicCheckpointIO.save_checkpoint

    def fail(self: AtomicCheckpointIO, content: dict[str, Any], path: PathOrUrl, storage_options: Any = None) -> None:
        if content["global_step"] == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(self, content, path)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", fail)
    where = stop_at(fit, "model=2tower", "run.id=full", step=3)
    assert where.startswith("at step 4, which could not be saved (")
    assert where.endswith("checkpoints/last.ckpt: No space left on device)")
    last = shop / "runs" / "full" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3


@pytest.mark.slow
def test_checkpoints_by_time(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write = AtomicCheckpointIO.save_checkpoint

    def note(self: AtomicCheckpointIO, content: dict[str, Any], path: PathOrUrl, storage_options: Any = None) -> None:
        written.append((Path(path).name, content["global_step"]))
        write(self, content, path)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", note)
    # three steps an epoch; what is validated is saved after that, whenever it was saved before
    run = fit("model=2tower", "callbacks.preemption.every_minutes=1e-9", "trainer.max_steps=5")
    assert [step for name, step in written if name == "last.ckpt"] == [1, 2, 3, 3, 4, 5]
    written.clear()
    fit("model=2tower", "run.id=other", "trainer.max_steps=5", "results_from=last")
    assert [step for name, step in written if name == "last.ckpt"] == [3, 5]
    assert run.read_results()["step"] == 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("key", "value"), [("every_minutes", 0), ("patience", None), ("save_patience", -1), ("patience", True)]
)
def test_impossible_times_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"callbacks\.preemption\.{key}={value}: give a number above 0"):
        Preemption(**{key: value})
