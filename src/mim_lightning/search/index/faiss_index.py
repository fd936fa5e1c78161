"""A product index in this process: FAISS, memory-mapped, with adding, replacing, deleting and saving.

A base segment of any index type is searched together with a delta segment, compared row by row, that receives
additions; deleted rows are marked. A search sees one whole state: changes replace the segments and never touch one
that is being searched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mim_lightning.artifact_paths import INDEX_CARD
from mim_lightning.io.locks import lock
from mim_lightning.search.index.card import COST, REBUILD, IndexCard, StoredFile, describe_index, describe_size
from mim_lightning.search.index.compaction import (
    append_rows,
    compact,
    has_other_kind,
    is_mostly_deleted,
    merge_segments,
)
from mim_lightning.search.index.filters import parse_filter
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts
from mim_lightning.search.index.index_type import FLAT_ROWS, choose_kind
from mim_lightning.search.index.interface import IndexHits, validate_queries
from mim_lightning.search.index.product_ranking import RankedRows
from mim_lightning.search.index.products import IndexRows, pick_records, unknown_product, validate_rows
from mim_lightning.search.index.recall import describe_effort, measure_full_recall, validate_recall
from mim_lightning.search.index.segment import Segment, build_measured_segment
from mim_lightning.search.index.small_vectors import cut_vectors
from mim_lightning.search.index.storage import (
    BASE,
    DELTA,
    LOCK_FILE,
    commit,
    read_card,
    read_segment,
    remove_unnamed,
    write_segment,
)


class FaissIndex:
    """See `ProductIndex`; safe to search from several threads while one of them changes it."""

    def __init__(self, folder: Path, card: IndexCard, segments: tuple[Segment, ...]) -> None:
        self.folder, self._card = folder, card
        self._segments = segments  # base, and delta if there is one
        self._saved_card: str | None = None  # as in the folder, once it is there
        self._change = threading.RLock()

    @property
    def card(self) -> IndexCard:
        return self._card

    def search(
        self, queries_QD: np.ndarray, k: int, filter: Mapping[str, Any] | None = None, with_vectors: bool = False
    ) -> IndexHits:
        """See `ProductIndex.search`."""
        segments = self._segments
        query_QD = validate_queries(self._card.fit_queries(queries_QD), k, self._card.dimension)
        conditions = parse_filter(filter, segments[0].products.column_types) if filter else ()
        parts = [_to_results(part, part.search(query_QD, k, conditions), k, with_vectors) for part in segments]
        return parts[0] if len(parts) == 1 else _merge_results(parts, k)

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
        """See `ProductIndex.add`; additions are stored when the index is saved."""
        with self._change:
            column_types = self._segments[0].products.column_types
            fitted = self._card.fit_vectors(vectors_ND)
            rows = validate_rows(fitted, row_product_ids, products, self._card.dimension, column_types)
            product_ids = rows.products.ids.to_pylist()
            base, *delta = (part.without(product_ids) for part in self._segments)
            self._replace(base, append_rows(delta[0] if delta else None, rows, base.settings))
            self._card = replace(self._card, extra={**self._card.extra, **(extra or {})})

    def set_extra(self, extra: Mapping[str, Any]) -> None:
        """See `ProductIndex.set_extra`."""
        with self._change:
            self._card = replace(self._card, extra={**self._card.extra, **extra})

    def delete(self, product_ids: Sequence[str]) -> int:
        """See `ProductIndex.delete`."""
        with self._change:
            before = self._card.num_products
            self._replace(*(part.without(list(product_ids)) for part in self._segments))
            return before - self._card.num_products

    def save(self) -> None:
        """Write new parts beside the stored ones, then replace the card; see `ProductIndex.save`.

        Raises:
            ValueError: another process has saved into the folder since this index was opened.
        """
        with self._change, lock(self.folder / LOCK_FILE):
            path = self.folder / INDEX_CARD
            exists = path.is_file()
            # parsed first: an older version wrote fewer facts
            if self._saved_card is not None and (not exists or read_card(self.folder).to_json() != self._saved_card):
                raise ValueError(f"{self.folder}: was saved by another process since it was opened; open it again")
            try:
                files: dict[str, StoredFile] = {}
                for prefix, segment in zip((BASE, DELTA), self._segments, strict=False):
                    files |= write_segment(self.folder, prefix, segment)
                card = replace(self._card, files=files)
                commit(self.folder, card)
            except BaseException:
                remove_unnamed(self.folder, read_card(self.folder) if path.is_file() else None)
                raise
            # continue with the files instead of what was built in memory
            self._segments = _read_segments(self.folder, card, verify=False)
            self._card, self._saved_card = card, card.to_json()

    def _replace(self, base: Segment, *delta: Segment) -> None:
        """Replace the segments that are searched, after compacting or merging them if it is time for that."""
        card, parts, num_delta = self._card, (base, *delta), sum(len(part.vectors) for part in delta)
        if is_mostly_deleted(parts) or (num_delta > FLAT_ROWS and has_other_kind(parts)):
            base, recall, why = compact(parts, self.folder)
            parts = (base,)
            size = describe_size(base.kind, base.settings, card.dimension)
            if base.kind != card.kind:  # what the former kind found
                card = replace(card, extra={key: value for key, value in card.extra.items() if key != COST})
            card = replace(card, kind=base.kind, why=why, recall=recall, settings=asdict(base.settings), **size)
            card = replace(card, full_recall=None)  # of the former index; the full vectors are gone
        elif num_delta > FLAT_ROWS:
            parts = (merge_segments(base, delta[0], self.folder),)
        parts = (parts[0], *(part for part in parts[1:] if part.has_live_row.any()))
        self._card = replace(
            card,
            num_products=sum(int(part.has_live_row.sum()) for part in parts),
            num_rows=sum(len(part.vectors) - part.num_deleted for part in parts),
            num_deleted=sum(part.num_deleted for part in parts),
        )
        self._segments = parts


def build_faiss_index(
    rows: IndexRows,
    settings: IndexSettings,
    facts: ModelFacts,
    folder: str,
    extra: Mapping[str, Any],
    given_QD: np.ndarray | None,
) -> FaissIndex:
    """See `factory.create_index`."""
    started = time.perf_counter()
    kind, why = choose_kind(settings, *rows.vectors.shape)
    fitted_QD = None if given_QD is None else cut_vectors(given_QD, rows.vectors.shape[1])
    segment, recall = build_measured_segment(kind, rows, settings, given_QD if rows.full is None else fitted_QD)
    why += describe_effort(settings, segment.settings)
    print(why)
    validate_recall(recall, settings, kind)
    size, seconds = (len(rows.products), len(rows.vectors)), time.perf_counter() - started
    card = describe_index("faiss", kind, why, size, facts, segment.settings, recall, extra, seconds)
    index = FaissIndex(Path(folder), card, (segment,))
    full = measure_full_recall(rows, settings, given_QD, lambda query, k: index.search(query, k).product_ids)
    index._card = replace(card, full_recall=full)
    index.save()
    return index


def open_faiss_index(folder: Path, expected_fingerprint: str | None = None, verify: bool = False) -> FaissIndex:
    """See `factory.open_index`."""
    while True:
        card = read_card(folder)
        card.validate_fingerprint(expected_fingerprint, str(folder))
        try:
            segments = _read_segments(folder, card, verify)
            counts = sum(part.num_deleted for part in segments), sum(len(part.vectors) for part in segments)
            if counts != (card.num_deleted, card.num_rows + card.num_deleted):
                found = f"{counts[1]} rows, {counts[0]} deleted"
                raise ValueError(f"{folder}: has {found}, its card other counts; {REBUILD}")
            index = FaissIndex(folder, card, segments)
        except FileNotFoundError as error:
            if read_card(folder) == card:  # otherwise another process has just saved
                raise ValueError(f"{error.filename}: this file of the index is missing; {REBUILD}") from None
            continue
        index._saved_card = card.to_json()
        return index


def _read_segments(folder: Path, card: IndexCard, verify: bool) -> tuple[Segment, ...]:
    base = read_segment(folder, BASE, card.kind, card, verify)
    if f"{DELTA}_index" not in card.files:
        return (base,)
    return base, read_segment(folder, DELTA, "flat", card, verify)


def _to_results(segment: Segment, ranked: RankedRows, num_wanted: int, with_vectors: bool) -> IndexHits:
    """Return the ranked products of a segment by id, padded to the number that was requested."""
    product_idx, rows, scores = ranked
    if rows.shape[1] < num_wanted:
        missing = (0, 0), (0, num_wanted - rows.shape[1])
        product_idx, rows = (np.pad(part, missing, constant_values=-1) for part in (product_idx, rows))
        scores = np.pad(scores, missing, constant_values=-np.inf)
    vectors = np.where(rows[..., None] >= 0, segment.vectors[rows], np.float32(0)) if with_vectors else None
    return IndexHits(segment.products.ids_at(product_idx), scores, vectors)


def _merge_results(parts: Sequence[IndexHits], num_wanted: int) -> IndexHits:
    """Merge the results of two segments; no product is in both."""
    ids = np.concatenate([part.product_ids for part in parts], axis=1)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    _, position = np.unique(ids, return_inverse=True)
    order = np.lexsort((position.reshape(ids.shape), -scores))[:, :num_wanted]
    vectors = None
    if all(part.vectors is not None for part in parts):
        vectors = np.concatenate([part.vectors for part in parts if part.vectors is not None], axis=1)
        vectors = np.take_along_axis(vectors, order[..., None], axis=1)
    return IndexHits(np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1), vectors)
