"""A product index on Milvus (a server, a cluster, or the embedded engine), with the same interface as `faiss_index`.

A row is an entity that carries the columns of its product; the card is a property of the collection. A build fills,
indexes and measures a new collection, which then takes the name of the old one: until then, searches use the old one.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from mim_lightning.display.progress import ProgressMeter
from mim_lightning.search.index import milvus_client
from mim_lightning.search.index.card import IndexCard, describe_index, parse_card
from mim_lightning.search.index.filters import OneOf, parse_filter
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts
from mim_lightning.search.index.index_type import BINARY, choose_kind, num_code_bytes, num_lists
from mim_lightning.search.index.interface import IndexHits, validate_queries
from mim_lightning.search.index.milvus_client import MilvusCollection, parse_address, validate_database
from mim_lightning.search.index.milvus_rows import (
    BITS,
    ROW,
    VECTOR,
    column_fields,
    make_schema,
    to_entities,
    to_expression,
    to_record,
)
from mim_lightning.search.index.milvus_search import MAX_ROWS, CollectionSize, MilvusSearch, RowHit
from mim_lightning.search.index.products import ID, IndexRows, pick_records, unknown_product, validate_rows
from mim_lightning.search.index.recall import (
    EXACT,
    FindScores,
    describe_effort,
    measure_full_recall,
    tune_effort,
    validate_recall,
)

CARD, COLUMNS = "mim_lightning.card", "mim_lightning.columns"  # properties of a collection
_MAX_IDS = 200  # in one expression
_ROWS_PER_PAGE = 1000


class MilvusIndex:
    """See `ProductIndex`. Changes take effect at once; `save` makes sure that they are on disk."""

    def __init__(
        self, collection: MilvusCollection, name: str, card: IndexCard, column_types: Mapping[str, str]
    ) -> None:
        self.collection, self.name, self._card, self.column_types = collection, name, card, dict(column_types)
        self._change = threading.RLock()

    @property
    def card(self) -> IndexCard:
        return self._card

    def search(
        self, queries_QD: np.ndarray, k: int, filter: Mapping[str, Any] | None = None, with_vectors: bool = False
    ) -> IndexHits:
        """See `ProductIndex.search`; at most 16,384 products per query."""
        query_QD = validate_queries(self._card.fit_queries(queries_QD), k, self._card.dimension)
        if k >= MAX_ROWS:
            raise ValueError(f"k={k}: Milvus returns fewer than {MAX_ROWS} products per query")
        expression = to_expression(parse_filter(filter, self.column_types), list(self.column_types))
        num_rows = self._card.num_rows
        size = CollectionSize(num_rows, self._card.num_products, self._count(expression) if expression else num_rows)
        search = MilvusSearch(self.collection, self.name, self._card.kind, IndexSettings(**self._card.settings))
        best = search.rank(query_QD, k, expression, size, with_vectors) if size.num_allowed else [[] for _ in query_QD]
        return _to_results(best, k, self._card.dimension if with_vectors else None)

    def products(self, product_ids: Sequence[str]) -> list[dict[str, Any]]:
        """See `ProductIndex.products`."""
        columns = list(self.column_types)
        rows = self._rows_of(product_ids, list(column_fields(columns).values()))
        return pick_records({row[ID]: to_record(row, columns) for row in rows}, product_ids)

    def vectors_of(self, product_id: str) -> np.ndarray:
        """See `ProductIndex.vectors_of`."""
        rows = {row[ROW]: row[VECTOR] for row in self._rows_of([product_id], [VECTOR])}
        if not rows:
            raise unknown_product(product_id)
        return np.array([rows[row_id] for row_id in sorted(rows)], dtype=np.float32)

    def add(
        self,
        vectors_ND: np.ndarray,
        row_product_ids: Sequence[str],
        products: pa.Table,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """See `ProductIndex.add`; old rows are deleted after the new ones are inserted: no search misses both."""
        fitted = self._card.fit_vectors(vectors_ND)
        rows = validate_rows(fitted, row_product_ids, products, self._card.dimension, self.column_types)
        ids = rows.products.ids.to_pylist()
        with self._change:
            self._count_after_interruption()
            old = {row[ROW]: row[ID] for row in self._rows_of(ids, [ID])}
            with self.collection.errors_as():
                for batch in to_entities(rows, self._card.kind in BINARY):
                    self.collection.client.insert(self.name, batch)
                if old:
                    self.collection.client.delete(self.name, ids=list(old))
            num_new = len(ids) - len(set(old.values()))
            self._change_card(num_new, len(rows.vectors) - len(old), extra or {})

    def set_extra(self, extra: Mapping[str, Any]) -> None:
        """See `ProductIndex.set_extra`."""
        with self._change:
            self._change_card(0, 0, extra)

    def delete(self, product_ids: Sequence[str]) -> int:
        """See `ProductIndex.delete`."""
        with self._change:
            self._count_after_interruption()
            old = {row[ROW]: row[ID] for row in self._rows_of(product_ids, [ID])}
            if old:
                with self.collection.errors_as():
                    self.collection.client.delete(self.name, ids=list(old))
                self._change_card(-len(set(old.values())), -len(old), {})
            return len(set(old.values()))

    def save(self) -> None:
        """See `ProductIndex.save`."""
        with self._change, self.collection.errors_as():
            self.collection.client.flush(self.name)
            self._write_card()

    def _write_card(self) -> None:
        properties = {CARD: self._card.to_json(), COLUMNS: json.dumps(self.column_types)}
        self.collection.client.alter_collection_properties(self.name, properties=properties)

    def _change_card(self, num_products: int, num_rows: int, extra: Mapping[str, Any]) -> None:
        """Write a card with so many more products and rows, and new values for keys of `extra`."""
        card = self._card
        self._card = replace(
            card,
            num_products=card.num_products + num_products,
            num_rows=card.num_rows + num_rows,
            extra={**card.extra, **extra},
        )
        with self.collection.errors_as():
            self._write_card()

    def _count_after_interruption(self) -> None:
        """Count all rows again if the card has another number: a process was killed between rows and card."""
        num_rows = self._count("")
        if num_rows == self._card.num_rows:
            return
        ids = {row[ID] for row in self._pages("", [ID])}
        self._change_card(len(ids) - self._card.num_products, num_rows - self._card.num_rows, {})

    def _count(self, expression: str) -> int:
        with self.collection.errors_as():
            answer = self.collection.client.query(
                self.name, filter=expression, output_fields=["count(*)"], timeout=milvus_client.TIMEOUT
            )
        return int(answer[0]["count(*)"])

    def _rows_of(self, product_ids: Sequence[str], fields: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of products, with their row ids and some fields."""
        for start in range(0, len(product_ids), _MAX_IDS):
            condition = OneOf(ID, tuple(product_ids[start : start + _MAX_IDS]))
            yield from self._pages(to_expression([condition], [ID]), fields)

    def _pages(self, expression: str, fields: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        with self.collection.errors_as():
            iterator = self.collection.client.query_iterator(
                self.name,
                _ROWS_PER_PAGE,
                filter=expression,
                output_fields=[ROW, *fields],
                timeout=milvus_client.TIMEOUT,
            )
            while rows := iterator.next():
                yield from rows
            iterator.close()


def build_milvus_index(
    rows: IndexRows,
    settings: IndexSettings,
    facts: ModelFacts,
    address: str,
    extra: Mapping[str, Any],
    given_QD: np.ndarray | None,
) -> MilvusIndex:
    """See `factory.create_index`."""
    started = time.perf_counter()
    collection = parse_address(address)
    if settings.precision == "int8" and settings.kind == "auto":  # the only type with 8-bit codes in all engines
        settings = replace(settings, kind="ivf")
    kind, why = choose_kind(settings, *rows.vectors.shape)
    _validate_kind(kind, settings, address)
    client = collection.client
    with collection.errors_as(ValueError):
        old = collection.find()
        if old is not None and CARD not in old[1]:
            raise ValueError(f"{address}: '{collection.name}' exists and is not a product index; choose another name")
        name = f"{collection.name}_{uuid.uuid4().hex[:12]}"
        try:
            size = len(rows.products), len(rows.vectors)
            card = describe_index("milvus", kind, why, size, facts, settings, EXACT, extra)
            index = MilvusIndex(collection, name, card, rows.products.column_types)
            _fill(index, rows, settings)
            fitted_QD = None if given_QD is None else card.fit_queries(given_QD)
            tuned, recall = tune_effort(kind, rows, settings, fitted_QD, partial(_search_with, index))
            why += describe_effort(settings, tuned)
            print(why)
            validate_recall(recall, settings, kind)
            seconds = time.perf_counter() - started
            index._card = replace(card, why=why, settings=asdict(tuned), recall=recall, build_seconds=seconds)
            full = measure_full_recall(rows, settings, given_QD, lambda query, k: index.search(query, k).product_ids)
            index._card = replace(index._card, full_recall=full)
            index.save()
            set_alias = client.create_alias if old is None else client.alter_alias
            set_alias(name, collection.name)
        except BaseException:
            with suppress(Exception):
                client.drop_collection(name)
            raise
        if old is not None:
            client.drop_collection(old[0])
    return index


def _validate_kind(kind: str, settings: IndexSettings, address: str) -> None:
    """Raise ValueError for what Milvus, or its embedded engine, does not have."""
    if kind in ("int8_flat", "int8_hnsw"):
        raise ValueError(f"precision=int8 with index.kind={settings.kind}: Milvus has 8-bit codes with index.kind=ivf")
    if settings.rescore != "float32":
        raise ValueError(f"index.rescore={settings.rescore}: Milvus keeps vectors in float32; leave it out")
    if kind in BINARY and "://" not in address:
        raise ValueError(
            f"{address}: the embedded engine of Milvus has no vectors of bits; give the address of a server, or a "
            "folder for FAISS"
        )


def _fill(index: MilvusIndex, rows: IndexRows, settings: IndexSettings) -> None:
    """Create the collection of an index, insert the rows, and index them."""
    client, name, kind = index.collection.client, index.name, index.card.kind
    has_bits = kind in BINARY
    schema = make_schema(client, index.column_types, index.card.dimension, has_bits)
    # a client sees its own writes immediately, other clients a moment later
    client.create_collection(name, schema=schema, consistency_level="Session")
    num_inserted = 0
    with ProgressMeter(len(rows.vectors), verb="", label=f"filling {name}") as meter:
        for batch in to_entities(rows, has_bits):
            client.insert(name, batch)
            num_inserted += len(batch)
            meter.update(num_inserted)
    num_rows, dimension = rows.vectors.shape
    lists = {"nlist": num_lists(settings, num_rows)}
    if kind == "ivf_pq":
        lists |= {"m": num_code_bytes(settings, dimension), "nbits": 8}
    index_type, options = {
        "flat": ("FLAT", {}),
        "hnsw": ("HNSW", {"M": settings.hnsw_m, "efConstruction": settings.ef_construction}),
        "sq8": ("IVF_SQ8", lists),
        "ivf_pq": ("IVF_PQ", lists),
        "binary_flat": ("BIN_FLAT", {}),
        "binary_ivf": ("BIN_IVF_FLAT", lists),
    }[kind]
    with ProgressMeter(None, verb="", label=f"indexing as {kind}"):
        client.flush(name)
        params = client.prepare_index_params()
        if has_bits:
            params.add_index(BITS, metric_type="HAMMING", index_type=index_type, params=options)
            # Milvus loads no collection with a field of vectors that has no index
            params.add_index(VECTOR, metric_type="IP", index_type="FLAT", params={"mmap.enabled": "true"})
        else:
            params.add_index(VECTOR, metric_type="IP", index_type=index_type, params=options)
        client.create_index(name, params)
        client.load_collection(name)


def _search_with(index: MilvusIndex, settings: IndexSettings) -> FindScores:
    tried = MilvusIndex(
        index.collection, index.name, replace(index.card, settings=asdict(settings)), index.column_types
    )
    return lambda query_QD, num_wanted: tried.search(query_QD, num_wanted).scores


def open_milvus_index(address: str, expected_fingerprint: str | None = None) -> MilvusIndex:
    """See `factory.open_index`."""
    index = find_index(address)
    index.card.validate_fingerprint(expected_fingerprint, address)
    with index.collection.errors_as(ValueError):
        index.collection.client.load_collection(index.name)
    return index


def find_index(address: str) -> MilvusIndex:
    """Return an index that is not loaded yet: its card can be read.

    Raises:
        ValueError: there is none.
    """
    collection = parse_address(address)
    validate_database(collection)
    with collection.errors_as(ValueError):
        found = collection.find()
        if found is None:
            raise ValueError(f"{address}: contains no collection '{collection.name}'; build an index there first")
        name, properties = found
        if CARD not in properties:
            raise ValueError(f"{address}: '{collection.name}' was not built as a product index, it has no card")
        card = parse_card(properties[CARD], address)
    return MilvusIndex(collection, name, card, json.loads(properties[COLUMNS]))


def _to_results(best: Sequence[Sequence[RowHit]], num_wanted: int, dimension: int | None) -> IndexHits:
    shape = len(best), num_wanted
    ids, scores = np.full(shape, "", dtype=object), np.full(shape, -np.inf, dtype=np.float32)
    vectors = None if dimension is None else np.zeros((*shape, dimension), dtype=np.float32)
    for query, hits in enumerate(best):
        for rank, hit in enumerate(hits):
            ids[query, rank], scores[query, rank] = hit.product_id, hit.score
            if vectors is not None:
                vectors[query, rank] = hit.vector
    return IndexHits(ids, scores, vectors)
