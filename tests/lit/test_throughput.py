"""The parts of a step: exclusive of each other, over the batches since the last logged step."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule

from mim_lightning.lit.callbacks import throughput
from mim_lightning.lit.callbacks.throughput import Throughput, _Stopwatch
from mim_lightning.losses import gather


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the clock shows, one reading after another."""
    readings: list[float] = []
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: readings.pop(0))
    return readings


def run(watch: _Stopwatch, *marks: str) -> dict[str, float]:
    for mark in marks:
        (watch.start if mark[0] == "+" else watch.stop)(mark[1:])
    return watch.read()


def test_a_part_within_another_counts_once(clock: list[float]) -> None:
    watch = _Stopwatch(torch.device("cpu"))
    clock += [0, 2, 3, 10, 20, 21]
    assert run(watch, "+loss", "+gather", "-gather", "-loss", "+loss", "-loss") == {"loss": 10.0, "gather": 1.0}
    watch.restart()
    assert run(watch) == {}


def test_a_span_that_was_not_ended_is_no_part(clock: list[float]) -> None:
    watch = _Stopwatch(torch.device("cpu"))
    clock += [0, 1, 4, 5]
    assert run(watch, "+backward", "+optimizer", "-backward", "-optimizer") == {"backward": 4.0}


def test_events_of_a_device_are_read_when_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        """An event on a device that is `behind` the host."""

        now, behind, waited = 0, True, 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            Event.now += 1
            self.time = Event.now

        def query(self) -> bool:
            return not Event.behind

        def synchronize(self) -> None:
            Event.waited += 1

        def elapsed_time(self, other: Any) -> float:
            return 1000.0 * (other.time - self.time)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch = _Stopwatch(torch.device("cuda"))
    for _ in range(3):
        watch.start("forward"), watch.stop("forward")
    assert len(watch.closed) == 3 and Event.waited == 0, "nothing waits for the device"
    Event.behind = False
    watch.start("forward"), watch.stop("forward")
    assert not watch.closed, "events of past steps do not pile up"
    assert watch.read() == {"forward": 4.0} and Event.waited == 0


def test_a_run_that_fails_stops_timing_collectives() -> None:
    callback, module = Throughput(), LightningModule()
    callback.on_train_start(SimpleNamespace(optimizers=[]), module)  # type: ignore[arg-type]
    try:
        callback._is_in_batch = True
        with pytest.raises(RuntimeError), gather.around_collective():
            raise RuntimeError
        assert not callback.stopwatch.open, "a collective that fails ends its span"
        callback.on_exception(None, module, RuntimeError())  # type: ignore[arg-type]
        assert gather.around_collective is nullcontext
    finally:
        gather.around_collective = nullcontext
