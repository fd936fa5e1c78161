"""A trained model outside training: load, embed, export."""

from typing import TYPE_CHECKING

from mim_lightning.exports import export_lazily

if TYPE_CHECKING:
    from mim_lightning.inference.loading import load
    from mim_lightning.inference.model import LoadedModel
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "LoadedModel": "mim_lightning.inference.model",
            "load": "mim_lightning.inference.loading",
        },
    )
