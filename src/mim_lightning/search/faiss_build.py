"""Building a FAISS index: choose its kind, fill and measure it, then refuse it or save it.

`index.build_index` calls it with checked rows; an open, saved index goes out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mim_lightning.search.faiss_index import FaissIndex
from mim_lightning.search.index_card import IndexCard, Recall
from mim_lightning.search.index_kind import choose_kind
from mim_lightning.search.index_rows import IndexRows
from mim_lightning.search.index_settings import IndexSettings, ModelFacts
from mim_lightning.search.segment_build import build_measured, describe_effort


def build_faiss_index(
    rows: IndexRows,
    settings: IndexSettings,
    facts: ModelFacts,
    folder: Path | str,
    extra: Mapping[str, Any],
    given_QD: np.ndarray | None,
) -> FaissIndex:
    """Build, measure and save an index; see `index.build_index`."""
    started = time.perf_counter()
    kind, why = choose_kind(settings, *rows.vectors.shape)
    segment, recall = build_measured(kind, rows, settings, given_QD)
    why += describe_effort(kind, settings, segment.settings)
    print(why)
    refuse_below(recall, settings, kind)
    seconds = time.perf_counter() - started
    card = describe_index("faiss", kind, why, rows, facts, segment.settings, recall, seconds, extra)
    index = FaissIndex(Path(folder), card, segment)
    index.save()
    return index


def refuse_below(recall: Recall, settings: IndexSettings, kind: str) -> None:
    """Raise ValueError if too little of the truth is found."""
    if recall.value < settings.min_recall:
        keys = "index.hnsw_m or index.ef_construction" if kind == "hnsw" else "index.pq_m"
        raise ValueError(
            f"index.kind={kind}: recall@{recall.k} is {recall.value:.4f}, index.min_recall asks for "
            f"{settings.min_recall}; raise {keys}, or take another kind"
        )


def describe_index(
    backend: str,
    kind: str,
    why: str,
    rows: IndexRows,
    facts: ModelFacts,
    settings: IndexSettings,
    recall: Recall,
    seconds: float,
    extra: Mapping[str, Any],
) -> IndexCard:
    """Return the card of an index that was just built; its files are not written yet."""
    return IndexCard(
        backend=backend,
        kind=kind,
        why=why,
        fingerprint=facts.fingerprint,
        gallery=facts.gallery,
        dimension=facts.dimension,
        num_products=len(rows.products),
        num_rows=len(rows.vectors),
        num_deleted=0,
        build_seconds=seconds,
        recall=recall,
        settings=asdict(settings),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        extra=extra,
    )
