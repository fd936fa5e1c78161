"""Filling a segment under a progress bar, and measuring how much of the truth it finds.

Checked rows come in from `faiss_build`, or from `faiss_index` when most of an index is dead; a segment that searches
as wide as its recall asks for goes out, with that recall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from rich import get_console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from mim_lightning.search.faiss_kinds import set_effort
from mim_lightning.search.index_card import Recall
from mim_lightning.search.index_kind import widen
from mim_lightning.search.index_recall import make_queries, measure_recall, true_scores
from mim_lightning.search.index_rows import IndexRows
from mim_lightning.search.index_settings import RECALL_K, IndexSettings
from mim_lightning.search.segment import Segment, build_segment

EXACT = Recall(RECALL_K, 1.0, 0, "every row is compared: exact")


def build_measured(
    kind: str, rows: IndexRows, settings: IndexSettings, given_QD: np.ndarray | None = None
) -> tuple[Segment, Recall]:
    """Return a segment and its recall; search parameters are raised while it stays below `min_recall`.

    Args:
        given_QD: queries to measure with, if there are some.
    """
    with progress_bar(f"building {kind}", len(rows.vectors)) as report:
        segment = build_segment(kind, rows.vectors, rows.product_idx, rows.products, settings, report)
    if kind == "flat":
        return segment, EXACT
    with progress_bar("measuring recall", None):
        query_QD, how = make_queries(rows.vectors, settings, given_QD)
        true_QK = true_scores(query_QD, rows.vectors, rows.product_idx)
        while True:
            set_effort(kind, segment.index, segment.settings)
            recall = measure_recall(query_QD, how, true_QK, _scores_of(segment))
            wider = widen(kind, segment.settings, len(rows.vectors))
            if recall.value >= settings.min_recall or wider is None:
                return segment, recall
            segment = replace(segment, settings=wider)


def _scores_of(segment: Segment) -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda query_QD, num_wanted: segment.search(query_QD, num_wanted).scores


def describe_effort(kind: str, asked: IndexSettings, used: IndexSettings) -> str:
    """Return what was raised to reach the recall, to be told behind the reason for the kind; empty if nothing was."""
    raised = [
        f"index.{key} raised from {getattr(asked, key)} to {getattr(used, key)} for recall"
        for key in ("ef_search", "nprobe", "rerank")
        if getattr(asked, key) != getattr(used, key)
    ]
    return "".join(f"; {text}" for text in raised)


@contextmanager
def progress_bar(what: str, num_rows: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar, and give a function that is told the rows done so far; None: there is no telling how long."""
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not get_console().is_terminal) as progress:
        task = progress.add_task(what, total=num_rows)
        yield lambda done: progress.update(task, completed=done)
