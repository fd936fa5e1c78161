"""What is known of queries and products besides vectors: ids, words, and the segments that results are told by.

A ShardSet comes in, plain dicts by id key go out; evaluation records, pages and the browser call it once a run.
No image is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.fields import QUERY_TEXT

SHARPNESS_LABELS = ("blurred third", "middle third", "sharp third")
BUILT_IN = ("category", "query_words", "image_quality")  # segments that every set has
WORD_LABELS = ("0 words", "1 word", "2 words", "3 or more words")


@dataclass(frozen=True)
class QueryFacts:
    query_id: str
    text: str  # "" without any
    segments: dict[str, str]  # segment name -> label


def query_facts(queries: ShardSet) -> dict[int, QueryFacts]:
    """Return what is known of every query of a set, by its key.

    Segments are its category, the number of its words, the third of the set's pictures that it belongs to by
    sharpness, and the columns that the source keeps for this; every query has all of them.
    """
    rows = [queries.read_facts(number) for number in range(len(queries))]
    unlabeled = {name: "none" for row in rows for name in row.get("segments", {})}
    thirds = _thirds([row.get("image_sharpness") for row in rows])
    return {
        int(key): QueryFacts(
            query_id=row["query_id"],
            text=row.get(QUERY_TEXT) or "",
            segments={
                "category": row.get("category") or "none",
                "query_words": WORD_LABELS[min(3, len((row.get(QUERY_TEXT) or "").split()))],
                "image_quality": third,
                **unlabeled,
                **row.get("segments", {}),
            },
        )
        for key, row, third in zip(queries.keys.tolist(), rows, thirds, strict=True)
    }


def product_ids_of(products: Sequence[ShardSet], keys: np.ndarray) -> dict[int, str]:
    """Return the id of every product whose key is among `keys`; keys that no set has are left out."""
    ids: dict[int, str] = {}
    for shards in products:
        ids |= {key: shards.read_facts(number)["product_id"] for key, number in shards.find(keys).items()}
    return ids


def _thirds(values: Sequence[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    if not known:
        return ["unknown"] * len(values)
    edges = np.quantile(known, [1 / 3, 2 / 3])
    return [
        "no picture" if value is None else SHARPNESS_LABELS[int(np.searchsorted(edges, value, side="left"))]
        for value in values
    ]
