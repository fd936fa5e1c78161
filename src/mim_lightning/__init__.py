"""Multimodal image matching: train, evaluate, index and search, in Python as on the command line.

import mim_lightning
run = mim_lightning.train("model=4tower", "trainer.max_epochs=3")
run.results["val/composed_to_product/hit@1"]
mim_lightning.build_index(f"checkpoint={run.best_checkpoint}", "output=index")
searcher = mim_lightning.open_searcher("index")
model = mim_lightning.load(run.best_checkpoint)
vectors = model.embed_query(["photo.jpg"], ["in blue"])

The modules here are entry points, the packages do the work.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mim_lightning.interruption import install, is_entry_point

if TYPE_CHECKING:
    from mim_lightning.inference.loading import load
    from mim_lightning.run import Run
    from mim_lightning.search.query import SearchQuery
    from mim_lightning.search.searcher import open_searcher

# modules that can be called
ENTRY_POINTS = ("train", "evaluate", "prepare", "embed", "build_index", "calibrate", "mine", "export")
EXPORTS = {
    "Run": "mim_lightning.run",
    "SearchQuery": "mim_lightning.search.query",
    "load": "mim_lightning.inference.loading",
    "open_searcher": "mim_lightning.search.searcher",
}
__all__ = ["Run", "SearchQuery", "load", "open_searcher"]

if is_entry_point():
    install()  # now: the imports of an entry point take seconds


def __getattr__(name: str) -> Any:
    # at first use: importing the package must not import torch, which takes seconds
    if name in EXPORTS:
        return getattr(importlib.import_module(EXPORTS[name]), name)
    if name in ENTRY_POINTS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *EXPORTS, *ENTRY_POINTS})
