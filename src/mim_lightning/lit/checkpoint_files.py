"""How checkpoints reach the disk: whole beside what was there, or not at all.

Lightning's own way goes through the system's temporary folder, which may be another file system: then a run that is
killed in the midst leaves half a file in the place of a good one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins import TorchCheckpointIO

from mim_lightning.io.atomic import atomic_write


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a file beside its place, to the disk, and only then over the former one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):  # an object appears when all of it has arrived
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Have a trainer write through `WholeCheckpointIO`, unless its config brings a way of its own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()
