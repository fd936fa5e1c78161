"""Multimodal image matching: `load` loads a trained model; the modules here are entry points, the packages do the work.

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
    install()  # now: the imports of an entry point take seconds


def __getattr__(name: str) -> Any:
    # at first use: importing the package must not import torch, which takes seconds
    if name == "load":
        from mim_lightning.inference.loading import load

        return load
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
