"""Building a FAISS index: choose its kind, fill and measure it, then refuse it or save it.

`product_index.build_index` calls it with checked rows; an open, saved index goes out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mim_lightning.search.index.card import describe_index
from mim_lightning.search.index.faiss_index import FaissIndex
from mim_lightning.search.index.kind import choose_kind
from mim_lightning.search.index.recall import describe_effort, refuse_below
from mim_lightning.search.index.rows import IndexRows
from mim_lightning.search.index.segment_build import build_measured
from mim_lightning.search.index.settings import IndexSettings, ModelFacts


def build_faiss_index(
    rows: IndexRows,
    settings: IndexSettings,
    facts: ModelFacts,
    folder: Path | str,
    extra: Mapping[str, Any],
    given_QD: np.ndarray | None,
) -> FaissIndex:
    """Build, measure and save an index; see `product_index.build_index`."""
    started = time.perf_counter()
    kind, why = choose_kind(settings, *rows.vectors.shape)
    segment, recall = build_measured(kind, rows, settings, given_QD)
    why += describe_effort(settings, segment.settings)
    print(why)
    refuse_below(recall, settings, kind)
    seconds = time.perf_counter() - started
    card = describe_index("faiss", kind, why, rows, facts, segment.settings, recall, seconds, extra)
    index = FaissIndex(Path(folder), card, segment)
    index.save()
    return index
