"""When an arm of `benchmarks.train` trains, and what a segment of its training took."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from benchmarks.machine import cpu_seconds, memory_bytes, reset_peak
from mim_lightning.model.matcher import Matcher

GIB = 2**30
Segment = dict[str, float]


class StopTraining(Exception):  # noqa: N818  # no error: it is how every arm ends
    """Ends an arm: no segment is wanted any more."""


class Pace:
    """Waits for the permission to train a segment, and measures it.

    Args:
        is_wanted: waits; returns whether another segment is wanted.
        report: takes the measurements of a segment.
        device: "cpu" or "cuda".
    """

    def __init__(self, is_wanted: Callable[[], bool], report: Callable[[Segment], None], device: str) -> None:
        self._is_wanted, self._report, self._on_gpu = is_wanted, report, device == "cuda"
        self._encoded: Counter[str] = Counter()

    def watch(self, matcher: Matcher) -> None:
        """Count the inputs of the encoders: images, and tokens with their padding."""
        for name in matcher.towers:
            matcher.tower(name).encoder.register_forward_pre_hook(self._count)

    def _count(self, encoder: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(inputs[0], dict):
            self._encoded["tokens"] += inputs[0]["input_ids"].numel()
        else:
            self._encoded["images"] += len(inputs[0])

    def begin(self) -> None:
        """Wait for a segment to be wanted, and start its clock.

        Raises:
            StopTraining: none is.
        """
        if not self._is_wanted():
            raise StopTraining
        self._encoded.clear()
        if self._on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        with suppress(OSError):
            reset_peak()
        self._start_memory = self._memory("VmRSS")
        self._start = time.perf_counter(), cpu_seconds()

    def end(self, num_rows: int) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
        started, cpu = self._start
        segment = {"rows": num_rows, "seconds": time.perf_counter() - started, "cpu_seconds": cpu_seconds() - cpu}
        # the kernel counts pages by CPU and lags: a segment that took no memory may read a peak below its start
        segment |= {"start_gib": self._start_memory, "peak_gib": max(self._start_memory, self._memory("VmHWM"))}
        self._report(segment | {name: float(self._encoded[name]) for name in ("images", "tokens")})

    def _memory(self, kind: str) -> float:
        if self._on_gpu:
            return (torch.cuda.max_memory_allocated() if kind == "VmHWM" else torch.cuda.memory_allocated()) / GIB
        return memory_bytes(kind) / GIB
