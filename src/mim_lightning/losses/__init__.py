"""Contrastive losses, as functions of tensors, and the objective that sums them over pairs.

To add a loss: a function of (similarities_BG, positives_BG, columns_G) that returns a value a row, named by
`loss.function`; an example is in `Objective`. It gets whole matrices; a tiled form is an entry of `tiled._FORMS`.
"""

from typing import TYPE_CHECKING

from mim_lightning.exports import export_lazily

if TYPE_CHECKING:
    from mim_lightning.losses.contrastive import info_nce, sigmoid
    from mim_lightning.losses.grades import exponential, linear, reciprocal_rank
    from mim_lightning.losses.objective import Objective, Pair
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "Objective": "mim_lightning.losses.objective",
            "Pair": "mim_lightning.losses.objective",
            "exponential": "mim_lightning.losses.grades",
            "linear": "mim_lightning.losses.grades",
            "reciprocal_rank": "mim_lightning.losses.grades",
            "info_nce": "mim_lightning.losses.contrastive",
            "sigmoid": "mim_lightning.losses.contrastive",
        },
    )
