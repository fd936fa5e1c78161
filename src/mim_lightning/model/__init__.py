"""Towers, fusions of towers, and the matcher of both."""

from typing import TYPE_CHECKING

from mim_lightning.exports import export_lazily

if TYPE_CHECKING:
    from mim_lightning.model.adapters import LoraSettings
    from mim_lightning.model.matcher import Matcher
    from mim_lightning.model.tower import Tower
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "LoraSettings": "mim_lightning.model.adapters",
            "Matcher": "mim_lightning.model.matcher",
            "Tower": "mim_lightning.model.tower",
        },
    )
