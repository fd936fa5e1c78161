"""Callbacks that do to a run, at one of its steps, what the campaign wants to see the end of."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from lightning import Callback


class KillWorkerAt(Callback):
    """Kills a data worker as the system does that is out of memory."""

    def __init__(self, step: int, signum: int = signal.SIGKILL) -> None:
        self.step, self.signum = step, signum

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(multiprocessing.active_children()[0].pid, self.signum)


class NotANumberFrom(Callback):
    """Makes the embeddings of a tower not finite, in `count` steps."""

    def __init__(self, step: int, count: int) -> None:
        self.steps = range(step, step + count)
        self.idx, self.hook = 0, None

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        if self.idx in self.steps:
            tower = module.matcher.towers["query_image"]
            self.hook: Any = tower.register_forward_hook(lambda _, __, output: output * math.nan)
        self.idx += 1

    def on_train_batch_end(self, *_: Any) -> None:
        if self.hook is not None:
            self.hook.remove()
            self.hook = None


class AlterAt(Callback):
    """Alters a data set that the run reads: `cut`, `flip` (a byte) or `remove` files, or `replace` the whole."""

    def __init__(self, step: int, what: str, files: str, other: str = "") -> None:
        self.step, self.what, self.files, self.other = step, what, files, other

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            alter(self.what, Path(self.files), self.other)


def alter(what: str, pattern: Path, other: str = "") -> None:
    """Alter the files that match a pattern."""
    if what == "replace":
        shutil.rmtree(pattern)
        shutil.copytree(other, pattern)
        return
    for path in list(pattern.parent.parent.glob(f"{pattern.parent.name}/{pattern.name}")):
        if what == "remove":
            path.unlink()
        elif what == "cut":
            os.truncate(path, path.stat().st_size // 2)
        else:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
