"""Sweeps over configs: job log, launcher, Optuna search."""

from typing import TYPE_CHECKING

from mim_lightning.exports import export_lazily

if TYPE_CHECKING:
    from mim_lightning.sweep.hydra_callback import SweepLog
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "SweepLog": "mim_lightning.sweep.hydra_callback",
        },
    )
