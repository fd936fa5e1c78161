"""Building an index on Milvus: a new collection is filled, indexed and measured, then takes the name of the old.

`product_index.build_index` calls it with checked rows; an open index goes out. Until the name changes hands, searches
go on in the collection that had it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mim_lightning.search.index.card import IndexCard, describe_index
from mim_lightning.search.index.kind import choose_kind, num_code_bytes, num_lists
from mim_lightning.search.index.milvus_client import MilvusPlace, read_address
from mim_lightning.search.index.milvus_index import CARD, MilvusIndex, find_collection
from mim_lightning.search.index.milvus_rows import VECTOR, entities, make_schema
from mim_lightning.search.index.progress import progress_bar
from mim_lightning.search.index.recall import EXACT, FindScores, describe_effort, reach_recall, refuse_below
from mim_lightning.search.index.rows import IndexRows
from mim_lightning.search.index.settings import IndexSettings, ModelFacts


def build_milvus_index(
    rows: IndexRows,
    settings: IndexSettings,
    facts: ModelFacts,
    address: Path | str,
    extra: Mapping[str, Any],
    given_QD: np.ndarray | None,
) -> MilvusIndex:
    """Build, measure and name a collection; see `product_index.build_index`."""
    started = time.perf_counter()
    place = read_address(str(address))
    kind, why = choose_kind(settings, *rows.vectors.shape)
    with place.told(ValueError):
        old = find_collection(place)
        if old is not None and CARD not in old[1]:
            raise ValueError(f"{address}: '{place.collection}' is there and not a product index; name another")
        collection = f"{place.collection}_{uuid.uuid4().hex[:12]}"
        try:
            card = describe_index("milvus", kind, why, rows, facts, settings, EXACT, 0.0, extra)
            index = _fill(place, collection, rows, card, settings)
            used, recall = reach_recall(kind, rows, settings, given_QD, partial(_scores_of, index))
            why += describe_effort(settings, used)
            print(why)
            refuse_below(recall, settings, kind)
            seconds = time.perf_counter() - started
            card = describe_index("milvus", kind, why, rows, facts, used, recall, seconds, extra)
            index = MilvusIndex(place, collection, card, index.kinds)
            index.save()
            _take_name(place, collection, is_new=old is None)
        except BaseException:
            with suppress(Exception):
                place.client.drop_collection(collection)
            raise
        if old is not None:
            place.client.drop_collection(old[0])
    return index


def _fill(
    place: MilvusPlace, collection: str, rows: IndexRows, card: IndexCard, settings: IndexSettings
) -> MilvusIndex:
    client, kinds = place.client, rows.products.kinds
    schema = make_schema(client, kinds, card.dimension)
    # a client sees what it has written itself, others a moment later
    client.create_collection(collection, schema=schema, consistency_level="Session")
    done = 0
    with progress_bar(f"filling {collection}", len(rows.vectors)) as report:
        for batch in entities(rows):
            client.insert(collection, batch)
            report(done := done + len(batch))
    with progress_bar(f"indexing as {card.kind}", None):
        client.flush(collection)
        params = client.prepare_index_params()
        params.add_index(VECTOR, metric_type="IP", **_index_options(card.kind, settings, rows.vectors.shape))
        client.create_index(collection, params)
        client.load_collection(collection)
    return MilvusIndex(place, collection, card, kinds)


def _index_options(kind: str, settings: IndexSettings, shape: tuple[int, ...]) -> dict[str, Any]:
    lists = {"nlist": num_lists(settings, shape[0])}
    return {
        "flat": {"index_type": "FLAT", "params": {}},
        "hnsw": {
            "index_type": "HNSW",
            "params": {"M": settings.hnsw_m, "efConstruction": settings.ef_construction},
        },
        "sq8": {"index_type": "IVF_SQ8", "params": lists},
        "ivf_pq": {
            "index_type": "IVF_PQ",
            "params": {**lists, "m": num_code_bytes(settings, shape[1]), "nbits": 8},
        },
    }[kind]


def _scores_of(index: MilvusIndex, used: IndexSettings) -> FindScores:
    widened = MilvusIndex(index.place, index.collection, replace(index.card, settings=asdict(used)), index.kinds)
    return lambda query_QD, num_wanted: widened.search(query_QD, num_wanted).scores


def _take_name(place: MilvusPlace, collection: str, is_new: bool) -> None:
    change = place.client.create_alias if is_new else place.client.alter_alias
    change(collection, place.collection)
