"""The speed of training, and the parts of a step that take its time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from mim_lightning.lit.step_means import is_written
from mim_lightning.losses import gather
from mim_lightning.types import Batch

FORWARD, LOSS, GATHER, BACKWARD, OPTIMIZER = "forward", "loss", "gather", "backward", "optimizer"


class Throughput(Callback):
    """Logs the speed of each epoch, and the seconds that the parts of a step take.

    `train/rows_per_second` is that of all ranks; `train/data_wait_fraction` is the fraction of rank 0's time, 0 to 1,
    in which it waited for the loader.

    `train/seconds/<part>` is the mean over the batches since the last logged step, on rank 0: `data_wait` (the next
    batch), `forward` (the towers), `loss`, `backward` (with the gradients' reduction over ranks, which runs beside it,
    and the second pass of micro-batches), `optimizer` (clipping and update), and with several ranks `gather` (the
    collectives of loss and log, which no other part counts). `train/seconds/step` is all of it, from batch to batch.
    On a CUDA device parts are measured by its events, which only logged steps wait for.
    """

    def __init__(self) -> None:
        self.stopwatch = _Stopwatch(torch.device("cpu"))
        self._handles: list[RemovableHandle] = []
        self._is_in_batch = False
        self._restart()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stopwatch = _Stopwatch(pl_module.device)
        for name, part in (("matcher", FORWARD), ("objective", LOSS)):
            module = getattr(pl_module, name, None)
            if isinstance(module, torch.nn.Module):
                self._handles += [
                    module.register_forward_pre_hook(lambda *_, part=part: self._start(part)),
                    module.register_forward_hook(lambda *_, part=part: self._stop(part)),
                ]
        for optimizer in trainer.optimizers:
            self._handles.append(optimizer.register_step_post_hook(lambda *_: self._stop(OPTIMIZER)))
        gather.around_collective = self._time_gather
        self._restart()  # a run resumed within an epoch has no epoch start

    @contextmanager
    def _time_gather(self) -> Iterator[None]:
        self._start(GATHER)
        try:
            yield
        finally:
            self._stop(GATHER)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()  # a run that fails has no teardown

    def _release(self) -> None:
        self._is_in_batch = False
        gather.around_collective = nullcontext
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def _restart(self) -> None:
        self.rows, self.waited = 0, 0.0
        self.started = self.last_end = time.perf_counter()
        self._restart_parts()

    def _restart_parts(self) -> None:
        self.num_batches, self.recent_wait, self.recent_start = 0, 0.0, self.last_end
        self.stopwatch.restart()

    def _start(self, part: str) -> None:
        if self._is_in_batch:
            self.stopwatch.start(part)

    def _stop(self, part: str) -> None:
        if self._is_in_batch:
            self.stopwatch.stop(part)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        waited = time.perf_counter() - self.last_end
        self.waited += waited
        self.recent_wait += waited
        self._is_in_batch = True
        self.stopwatch.open.clear()  # gradient scaling may have skipped the optimizer's step

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self._start(BACKWARD)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(BACKWARD)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._start(OPTIMIZER)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._is_in_batch = False
        self.rows += len(batch) * trainer.world_size
        self.num_batches += 1
        if is_written(trainer, batch_idx):
            parts = self.stopwatch.read()  # waits for the device
            self.last_end = time.perf_counter()
            parts |= {"data_wait": self.recent_wait, "step": self.last_end - self.recent_start}
            log = {f"train/seconds/{part}": seconds / self.num_batches for part, seconds in parts.items()}
            pl_module.log_dict(log, batch_size=1)
            self._restart_parts()
        self.last_end = time.perf_counter()
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            # here, not at the epoch's end, which comes after validation
            seconds = max(self.last_end - self.started, 1e-9)
            log = {"train/rows_per_second": self.rows / seconds, "train/data_wait_fraction": self.waited / seconds}
            # of the epoch: Lightning drops a step's values where the last step is not logged
            pl_module.log_dict(log, on_step=False, on_epoch=True, batch_size=1)


class _Stopwatch:
    """Seconds by part, of spans that may lie within each other: the outer one does not count the inner one.

    Marks are events on a CUDA device, which nothing waits for until `read`, and times elsewhere.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Forget all spans."""
        self.seconds: dict[str, float] = {}
        self.open: list[tuple[str, Any]] = []
        self.closed: deque[tuple[str, str | None, Any, Any]] = deque()  # part, the part around it, start, end

    def start(self, part: str) -> None:
        self.open.append((part, self._mark()))

    def stop(self, part: str) -> None:
        """End the innermost span of a part, if there is one."""
        while self.open:
            name, started = self.open.pop()
            if name == part:
                self.closed.append((part, self.open[-1][0] if self.open else None, started, self._mark()))
                break
        while self.closed and (not self.is_cuda or self.closed[0][3].query()):
            self._add(*self.closed.popleft())

    def read(self) -> dict[str, float]:
        """Return the seconds so far, of parts that ended."""
        if self.closed:
            self.closed[-1][3].synchronize()
        while self.closed:
            self._add(*self.closed.popleft())
        return dict(self.seconds)

    def _mark(self) -> Any:
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _add(self, part: str, around: str | None, started: Any, ended: Any) -> None:
        seconds = started.elapsed_time(ended) / 1000 if self.is_cuda else ended - started
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        if around is not None:
            self.seconds[around] = self.seconds.get(around, 0.0) - seconds
