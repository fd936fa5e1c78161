"""Look queries and products up by id: samples, texts, and the segments that results are reported by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.fields import QUERY_TEXT
from mim_lightning.types import Sample, hash_id

SHARPNESS_LABELS = ("blurred third", "middle third", "sharp third")
BUILT_IN = ("category", "query_words", "image_quality")  # segments that every set has
WORD_LABELS = ("0 words", "1 word", "2 words", "3 or more words")


@dataclass(frozen=True)
class QueryFacts:
    query_id: str
    text: str  # "" without any
    segments: dict[str, str]  # segment name -> label


def query_facts(queries: ShardSet) -> dict[int, QueryFacts]:
    """Return the metadata of every query of a set, by its key; no image is read.

    Segments are its category, the number of its words, the third of the set's images that it is in by sharpness, and
    the segment columns of the source; every query has all of them.
    """
    rows = list(queries.all_facts())
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
    """Return the ids of products by key; keys that no set has are left out."""
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


def find_samples(
    sets: Sequence[ShardSet], ids: Iterable[str], having: str | None = None, *, skip_damaged: bool = False
) -> dict[str, Sample]:
    """Return the first sample of each id, in the first set that has one; an id that no set has is left out.

    Args:
        sets: of queries or of products, as the ids.
        having: a field; samples without it are skipped.
        skip_damaged: skip samples that cannot be read, and sets that are gone.

    Raises:
        ValueError: a sample cannot be read.
    """
    wanted = {hash_id(item_id): item_id for item_id in ids}
    samples: dict[str, Sample] = {}
    for shards in sets:
        for key, sample in _read_by_key(shards, list(wanted), skip_damaged):
            if having is None or having in sample.inputs:
                samples[wanted.pop(key)] = sample
    return samples


def _read_by_key(shards: ShardSet, keys: Sequence[int], skip_damaged: bool) -> Iterator[tuple[int, Sample]]:
    try:
        numbers = shards.find(keys)
    except (OSError, ValueError):  # the folder may have been removed
        if skip_damaged:
            return
        raise
    for key, number in numbers.items():
        try:
            (sample,) = shards.read_few([number])
        except ValueError:
            if skip_damaged:
                continue
            raise
        yield key, sample
