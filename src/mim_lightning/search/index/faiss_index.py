"""A product index in this process: FAISS, memory-mapped, with adding, updating, deleting and saving.

`product_index` builds and opens it. There is a main segment of any kind, and a fresh one, compared row by row, that
takes what is added; deleted rows are marked. Every search sees one state, whole: changes replace it, and touch
nothing that is being searched.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mim_lightning.io.locks import lock
from mim_lightning.search.index.card import IndexCard
from mim_lightning.search.index.files import (
    CARD_FILE,
    LOCK_FILE,
    commit,
    named_files,
    read_folder_card,
    remove_unnamed,
)
from mim_lightning.search.index.filters import read_filter
from mim_lightning.search.index.kind import FLAT_ROWS
from mim_lightning.search.index.nearest_products import Ranked
from mim_lightning.search.index.product_index import Found
from mim_lightning.search.index.products import pick_records, unknown_product
from mim_lightning.search.index.rows import check_queries, check_rows
from mim_lightning.search.index.segment import Segment
from mim_lightning.search.index.segment_change import append_rows, compact, is_mostly_dead, join
from mim_lightning.search.index.segment_files import read_segment, with_files, write_segment
from mim_lightning.search.index.settings import IndexSettings

MAIN, FRESH = "main", "fresh"


class FaissIndex:
    """See `ProductIndex`; safe to search from several threads while one of them changes it."""

    def __init__(self, folder: Path, card: IndexCard, main: Segment, fresh: Segment | None = None) -> None:
        self.folder, self._card = folder, card
        self._segments: tuple[Segment, ...] = (main,) if fresh is None else (main, fresh)
        self._opened_card: str | None = None  # as it stands in the folder, once it does
        self._change = threading.RLock()

    @property
    def card(self) -> IndexCard:
        return self._card

    def search(
        self, queries_QD: np.ndarray, k: int, where: Mapping[str, Any] | None = None, with_vectors: bool = False
    ) -> Found:
        """See `ProductIndex.search`."""
        segments = self._segments
        query_QD = check_queries(queries_QD, k, self._card.dimension)
        conditions = read_filter(where, segments[0].products.kinds) if where else ()
        parts = [_found(part, part.search(query_QD, k, conditions), k, with_vectors) for part in segments]
        return parts[0] if len(parts) == 1 else _best_of(parts, k)

    def products(self, product_ids: Sequence[str]) -> list[dict[str, Any]]:
        """See `ProductIndex.products`."""
        records: dict[str, dict[str, Any]] = {}
        for segment in self._segments:
            product_idx = segment.find(product_ids)
            found = segment.products.records(product_idx[product_idx >= 0])
            records |= {record["product_id"]: record for record in found}
        return pick_records(records, product_ids)

    def vectors_of(self, product_id: str) -> np.ndarray:
        """See `ProductIndex.vectors_of`."""
        for segment in self._segments:
            product_idx = segment.find([product_id])
            if product_idx[0] >= 0:
                return segment.vectors[segment.rows_of(product_idx)]
        raise unknown_product(product_id)

    def add(
        self,
        vectors_ND: np.ndarray,
        row_product_ids: Sequence[str],
        products: pa.Table,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """See `ProductIndex.add`; what is added is stored once the index is saved."""
        with self._change:
            like = self._segments[0].products.kinds
            rows = check_rows(vectors_ND, row_product_ids, products, self._card.dimension, like)
            main, *others = self._without(rows.products.ids.to_pylist())
            self._replace(main, append_rows(others[0] if others else None, rows, main.settings))
            self._card = replace(self._card, extra={**self._card.extra, **(extra or {})})

    def delete(self, product_ids: Sequence[str]) -> int:
        """See `ProductIndex.delete`."""
        with self._change:
            before = self._card.num_products
            self._replace(*self._without(list(product_ids)))
            return before - self._card.num_products

    def save(self) -> None:
        """Write what is new beside what is there, then let the card name it; see `ProductIndex.save`.

        Raises:
            ValueError: another process has saved into the folder since this index was opened.
        """
        with self._change, lock(self.folder / LOCK_FILE):
            path = self.folder / CARD_FILE
            is_there = path.is_file()
            if self._opened_card is not None and (not is_there or path.read_text("utf-8") != self._opened_card):
                raise ValueError(f"{self.folder}: was saved by another process since it was opened; open it again")
            try:
                named = zip((MAIN, FRESH), self._segments, strict=False)
                files = {prefix: write_segment(self.folder, prefix, segment) for prefix, segment in named}
                card = with_files(self._card, files)
                commit(self.folder, card)
            except BaseException:
                remove_unnamed(self.folder, named_files(self.folder))
                raise
            self._reopen(card)

    def _without(self, product_ids: Sequence[str]) -> tuple[Segment, ...]:
        return tuple(part.without(part.rows_of(_known(part.find(product_ids)))) for part in self._segments)

    def _replace(self, *parts: Segment) -> None:
        """Make segments the ones that are searched, in better order if it is time for that."""
        card, num_fresh = self._card, sum(len(part.vectors) for part in parts[1:])
        if is_mostly_dead(parts) or (num_fresh > FLAT_ROWS and parts[0].kind == "flat"):
            main, recall, why = compact(parts, self.folder)
            parts = (main,)
            card = replace(card, kind=main.kind, why=why, recall=recall, settings=asdict(main.settings))
        elif num_fresh > FLAT_ROWS:
            parts = (join(parts[0], parts[1], self.folder),)
        parts = (parts[0], *(part for part in parts[1:] if part.has_row.any()))
        self._card = replace(
            card,
            num_products=sum(int(part.has_row.sum()) for part in parts),
            num_rows=sum(len(part.vectors) - part.num_dead for part in parts),
            num_deleted=sum(part.num_dead for part in parts),
        )
        self._segments = parts

    def _reopen(self, card: IndexCard) -> None:
        """Go on with the files instead of what was built in memory."""
        self._segments = read_segments(self.folder, card, verify=False)
        self._card, self._opened_card = card, card.to_json()


def open_faiss_index(folder: Path, expected_fingerprint: str | None = None, verify: bool = False) -> FaissIndex:
    """See `product_index.open_index`."""
    while True:
        card = read_folder_card(folder)
        card.check_fingerprint(expected_fingerprint, str(folder))
        try:
            index = FaissIndex(folder, card, *read_segments(folder, card, verify))
        except FileNotFoundError as error:
            if read_folder_card(folder) == card:  # else another process has just saved
                raise ValueError(f"{error.filename}: this file of the index is missing; build the index anew") from None
            continue
        index._opened_card = card.to_json()
        return index


def read_segments(folder: Path, card: IndexCard, verify: bool) -> tuple[Segment, ...]:
    settings = IndexSettings(**card.settings)
    main = read_segment(folder, MAIN, card.kind, card, settings, verify)
    if f"{FRESH}_index" not in card.files:
        return (main,)
    return main, read_segment(folder, FRESH, "flat", card, settings, verify)


def _known(product_idx: np.ndarray) -> np.ndarray:
    return product_idx[product_idx >= 0]


def _found(segment: Segment, ranked: Ranked, num_wanted: int, with_vectors: bool) -> Found:
    """Return ranked products of a segment with ids, filled up to as many as were wanted."""
    product_idx, rows, scores = ranked
    if rows.shape[1] < num_wanted:
        missing = (0, 0), (0, num_wanted - rows.shape[1])
        product_idx, rows = (np.pad(part, missing, constant_values=-1) for part in (product_idx, rows))
        scores = np.pad(scores, missing, constant_values=-np.inf)
    vectors = None
    if with_vectors:
        vectors = np.where(rows[..., None] >= 0, segment.vectors[rows], np.float32(0))
    return Found(segment.products.ids_at(product_idx), scores, vectors)


def _best_of(parts: Sequence[Found], num_wanted: int) -> Found:
    """Join what two segments found; no product is in both."""
    ids = np.concatenate([part.product_ids for part in parts], axis=1)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    _, place = np.unique(ids, return_inverse=True)
    order = np.lexsort((place.reshape(ids.shape), -scores))[:, :num_wanted]
    vectors = None
    if all(part.vectors is not None for part in parts):
        vectors = np.concatenate([part.vectors for part in parts if part.vectors is not None], axis=1)
        vectors = np.take_along_axis(vectors, order[..., None], axis=1)
    return Found(np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1), vectors)
