"""Contrastive losses, as functions of tensors, and the objective that sums them over pairs."""

from typing import TYPE_CHECKING

from mim_lightning.exports import export_lazily

if TYPE_CHECKING:
    from mim_lightning.losses.contrastive import info_nce, sigmoid
    from mim_lightning.losses.objective import Objective, Pair
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "Objective": "mim_lightning.losses.objective",
            "Pair": "mim_lightning.losses.objective",
            "info_nce": "mim_lightning.losses.contrastive",
            "sigmoid": "mim_lightning.losses.contrastive",
        },
    )
