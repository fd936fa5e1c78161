"""Multimodal image matching: `load` a trained model here; everything else is a door or a room.

import mim_lightning
model = mim_lightning.load("runs/<id>/checkpoints/best.ckpt")
vectors = model.embed_query(["photo.jpg"], ["in blue"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mim_lightning.interruption import install, is_entry_point

if TYPE_CHECKING:
    from mim_lightning.inference.loading import load

__all__ = ["load"]

if is_entry_point():
    install()  # now: what an entry point imports takes seconds


def __getattr__(name: str) -> Any:
    # at first use: importing the package must not cost the seconds that torch takes
    if name == "load":
        from mim_lightning.inference.loading import load

        return load
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
