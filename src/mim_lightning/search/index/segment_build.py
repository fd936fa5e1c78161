"""Filling a segment under a progress bar, and measuring how much of the truth it finds.

Checked rows come in from `faiss_build`, or from `segment_change` when most of an index is dead; a segment that
searches as wide as its recall asks for goes out, with that recall.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mim_lightning.search.index.card import Recall
from mim_lightning.search.index.faiss_kinds import set_effort
from mim_lightning.search.index.progress import progress_bar
from mim_lightning.search.index.recall import FindScores, reach_recall
from mim_lightning.search.index.rows import IndexRows
from mim_lightning.search.index.segment import Segment, build_segment
from mim_lightning.search.index.settings import IndexSettings


def build_measured(
    kind: str, rows: IndexRows, settings: IndexSettings, given_QD: np.ndarray | None = None
) -> tuple[Segment, Recall]:
    """Return a segment and its recall; search parameters are raised while it stays below `min_recall`.

    Args:
        given_QD: queries to measure with, if there are some.
    """
    with progress_bar(f"building {kind}", len(rows.vectors)) as report:
        segment = build_segment(kind, rows.vectors, rows.product_idx, rows.products, settings, report)

    def search_with(used: IndexSettings) -> FindScores:
        set_effort(kind, segment.index, used)
        return _scores_of(replace(segment, settings=used))

    used, recall = reach_recall(kind, rows, settings, given_QD, search_with)
    return replace(segment, settings=used), recall


def _scores_of(segment: Segment) -> FindScores:
    return lambda query_QD, num_wanted: segment.search(query_QD, num_wanted).scores
