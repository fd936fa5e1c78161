"""A product index on Milvus: the contract of `faiss_index`, kept by a server, a cluster or an embedded engine.

`product_index` opens it, `milvus_build` fills it, `milvus_search` asks it. A row is an entity that carries its
product's columns. The card is a property of the collection.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from mim_lightning.search.index import milvus_client
from mim_lightning.search.index.card import IndexCard, read_card
from mim_lightning.search.index.filters import OneOf, read_filter
from mim_lightning.search.index.milvus_client import MilvusPlace, read_address, require_database
from mim_lightning.search.index.milvus_rows import ROW, VECTOR, as_record, entities, expression, fields_of
from mim_lightning.search.index.milvus_search import MOST_ROWS, Hit, MilvusSearch, Reach
from mim_lightning.search.index.product_index import Found
from mim_lightning.search.index.products import ID, pick_records, unknown_product
from mim_lightning.search.index.rows import check_queries, check_rows
from mim_lightning.search.index.settings import IndexSettings

CARD, COLUMNS = "mim_lightning.card", "mim_lightning.columns"  # properties of a collection
_IDS = 200  # in one expression
_ROWS = 1000  # read at once


class MilvusIndex:
    """See `ProductIndex`. Changes are kept at once; `save` makes sure that they are on disk."""

    def __init__(self, place: MilvusPlace, collection: str, card: IndexCard, kinds: Mapping[str, str]) -> None:
        self.place, self.collection, self._card, self.kinds = place, collection, card, dict(kinds)
        self._change = threading.RLock()

    @property
    def card(self) -> IndexCard:
        return self._card

    def search(
        self, queries_QD: np.ndarray, k: int, where: Mapping[str, Any] | None = None, with_vectors: bool = False
    ) -> Found:
        """See `ProductIndex.search`; at most 16,384 products a query."""
        query_QD = check_queries(queries_QD, k, self._card.dimension)
        if k >= MOST_ROWS:
            raise ValueError(f"k={k}: Milvus gives fewer than {MOST_ROWS} products a query")
        filter_text = expression(read_filter(where, self.kinds), list(self.kinds))
        num_rows = self._card.num_rows
        num_allowed = self._count(filter_text) if filter_text else num_rows
        reach = Reach(num_rows, self._card.num_products, num_allowed)
        search = MilvusSearch(self.place, self.collection, self._card.kind, IndexSettings(**self._card.settings))
        found = search.rank(query_QD, k, filter_text, reach, with_vectors) if num_allowed else [[] for _ in query_QD]
        return _as_found(found, k, self._card.dimension if with_vectors else None)

    def products(self, product_ids: Sequence[str]) -> list[dict[str, Any]]:
        """See `ProductIndex.products`."""
        fields = list(fields_of(list(self.kinds)).values())
        records = {row[ID]: as_record(row, list(self.kinds)) for row in self._rows_of(product_ids, fields)}
        return pick_records(records, product_ids)

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
        """See `ProductIndex.add`; old rows go when the new ones are there, so that no search misses both."""
        rows = check_rows(vectors_ND, row_product_ids, products, self._card.dimension, self.kinds)
        ids = rows.products.ids.to_pylist()
        with self._change:
            old = {row[ROW]: row[ID] for row in self._rows_of(ids, [ID])}
            with self.place.told():
                for batch in entities(rows):
                    self.place.client.insert(self.collection, batch)
                if old:
                    self.place.client.delete(self.collection, ids=list(old))
            num_new = len(ids) - len(set(old.values()))
            self._change_card(num_new, len(rows.vectors) - len(old), extra or {})

    def delete(self, product_ids: Sequence[str]) -> int:
        """See `ProductIndex.delete`."""
        with self._change:
            old = {row[ROW]: row[ID] for row in self._rows_of(product_ids, [ID])}
            if old:
                with self.place.told():
                    self.place.client.delete(self.collection, ids=list(old))
                self._change_card(-len(set(old.values())), -len(old))
            return len(set(old.values()))

    def save(self) -> None:
        """See `ProductIndex.save`."""
        with self._change, self.place.told():
            self.place.client.flush(self.collection)
            self.write_card()

    def write_card(self) -> None:
        properties = {CARD: self._card.to_json(), COLUMNS: json.dumps(self.kinds)}
        self.place.client.alter_collection_properties(self.collection, properties=properties)

    def _change_card(self, num_products: int, num_rows: int, extra: Mapping[str, Any] | None = None) -> None:
        """Write a card that counts so many more, and says of `extra` what is new."""
        card = self._card
        self._card = replace(
            card,
            num_products=card.num_products + num_products,
            num_rows=card.num_rows + num_rows,
            extra={**card.extra, **(extra or {})},
        )
        with self.place.told():
            self.write_card()

    def _count(self, filter_text: str) -> int:
        with self.place.told():
            answer = self.place.client.query(
                self.collection, filter=filter_text, output_fields=["count(*)"], timeout=milvus_client.PATIENCE
            )
        return int(answer[0]["count(*)"])

    def _rows_of(self, product_ids: Sequence[str], fields: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of products, with their row ids and some fields."""
        for start in range(0, len(product_ids), _IDS):
            condition = OneOf(ID, tuple(product_ids[start : start + _IDS]))
            with self.place.told():
                iterator = self.place.client.query_iterator(
                    self.collection,
                    _ROWS,
                    filter=expression([condition], [ID]),
                    output_fields=[ROW, *fields],
                    timeout=milvus_client.PATIENCE,
                )
                while rows := iterator.next():
                    yield from rows
                iterator.close()


def open_milvus_index(address: str, expected_fingerprint: str | None = None) -> MilvusIndex:
    """See `product_index.open_index`."""
    place = read_address(address)
    require_database(place)
    with place.told(ValueError):
        found = find_collection(place)
        if found is None:
            raise ValueError(f"{address}: holds no collection '{place.collection}'; build an index there first")
        collection, properties = found
        if CARD not in properties:
            raise ValueError(f"{address}: '{place.collection}' was not built as a product index, it has no card")
        card = read_card(properties[CARD], address)
        card.check_fingerprint(expected_fingerprint, address)
        place.client.load_collection(collection)
    return MilvusIndex(place, collection, card, json.loads(properties[COLUMNS]))


def find_collection(place: MilvusPlace) -> tuple[str, dict[str, str]] | None:
    """Return the collection that a place's name stands for, and its properties; None if there is none."""
    if not place.client.has_collection(place.collection):
        return None
    described = place.client.describe_collection(place.collection)
    return described["collection_name"], dict(described.get("properties", {}))


def _as_found(found: Sequence[Sequence[Hit]], num_wanted: int, dimension: int | None) -> Found:
    shape = len(found), num_wanted
    ids, scores = np.full(shape, "", dtype=object), np.full(shape, -np.inf, dtype=np.float32)
    vectors = None if dimension is None else np.zeros((*shape, dimension), dtype=np.float32)
    for query, hits in enumerate(found):
        for place, hit in enumerate(hits):
            ids[query, place], scores[query, place] = hit.product_id, hit.score
            if vectors is not None:
                vectors[query, place] = hit.vector
    return Found(ids, scores, vectors)
