"""Samples that a change would remove and add again as they are: they stay.

Tables that replace rows are often exports of everything, of which little is new.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from mim_lightning.data.preparation.plan import PlannedSample, PlannedSet, RecordReader, RowImageError
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.versions.changed_rows import SetChange
from mim_lightning.data.versions.known_rows import KnownRows
from mim_lightning.fields import IMAGE_FIELDS

MEASURED = "image_sharpness"  # added to the facts of a sample when it is written


def without_unchanged(change: SetChange, rows: KnownRows, records: RecordReader) -> SetChange:
    """Return a change without the samples that it removes and adds with the same facts and images."""
    if not len(change.removed) or not change.samples:
        return change
    shards = rows.prepared.open_set(change.name)
    removed: dict[str, list[int]] = defaultdict(list)
    for number in change.removed.tolist():
        removed[_key(shards.read_facts(number))].append(number)
    kept, unchanged = set[int](), set[int]()  # numbers of stored samples; positions of those that they stand for
    for position, sample in enumerate(change.samples):
        candidates = removed.get(_key(sample.facts), [])
        same = next((number for number in candidates if _is_same(sample, shards, number, records)), None)
        if same is not None:
            candidates.remove(same)
            kept.add(same)
            unchanged.add(position)
    left = np.array([number for number in change.removed.tolist() if number not in kept], dtype=np.int64)
    read = partial(_read_others, change.samples, unchanged)
    return replace(change, removed=left, samples=PlannedSet(change.name, len(change.samples) - len(unchanged), read))


def _read_others(samples: Iterable[PlannedSample], unchanged: Set[int]) -> Iterator[PlannedSample]:
    return (sample for position, sample in enumerate(samples) if position not in unchanged)


def _key(facts: Mapping[str, Any]) -> str:
    """Return the facts as text, without what is measured when a sample is written."""
    return json.dumps({name: value for name, value in facts.items() if name != MEASURED}, sort_keys=True)


def _is_same(sample: PlannedSample, shards: ShardSet, number: int, records: RecordReader) -> bool:
    """Return whether a sample has the images of a stored one; its facts are the same."""
    stored, _ = shards.read_members(number, ("json", *IMAGE_FIELDS))
    if stored.keys() != sample.images.keys():
        return False
    try:
        return stored == dict(records.record(sample).images)
    except RowImageError:  # reported when it is written
        return False
