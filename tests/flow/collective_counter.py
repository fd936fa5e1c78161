"""A callback that counts the collectives of each training step, but for those of the loss and of Lightning's loop."""

import json
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from mim_lightning.types import Batch

NAMES = ("all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast", "barrier")
# files whose collectives a step needs: the loss, and whether a signal has stopped another rank
NEEDED = ("/losses/", "training_epoch_loop.py", "/callbacks/")


class CollectiveCounter(Callback):
    """Writes `collectives.json` into the run's folder: by step, its collectives by name, and its loss on this rank."""

    def __init__(self) -> None:
        self.counts: list[Counter[str]] = []
        self.losses: list[float] = []
        self.shown: list[float | None] = []  # loss on the progress bar
        self.is_counting = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for name in NAMES if trainer.world_size > 1 and stage == "fit" else ():
            setattr(dist, name, self._counted(name, getattr(dist, name)))

    def _counted(self, name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            frames = [frame.filename for frame in traceback.extract_stack()[:-1]]
            is_needed = any(part in frame for frame in frames[-4:] for part in NEEDED)
            if self.is_counting and (not is_needed or any("step_means.py" in frame for frame in frames)):
                self.counts[-1]["of the log" if is_needed else name] += 1
            return function(*args, **options)

        return call

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.counts.append(Counter())
        self.is_counting = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))
        self.shown.append(trainer.progress_bar_metrics.get("train/running_loss"))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.is_counting = False  # until the next step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = Path(trainer.default_root_dir) / f"collectives-{trainer.global_rank}.json"
        path.write_text(json.dumps([self.counts, self.losses, self.shown]))
