"""What changed between two versions of a catalog: which rows came and went, and which products that means.

Rows have the same numbers in all versions, as shards are only added. A row that was written again with the same
content, as compaction does, is no change.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from mim_lightning.data.shards.open_shards import MEMBERS
from mim_lightning.data.shards.shard_set import ShardSet


@dataclass(frozen=True)
class CatalogDifference:
    """Products by id, ascending, that one version has and another has not, or has with other content."""

    added: list[str]
    replaced: list[str]
    deleted: list[str]


def is_version_of(old: ShardSet, new: ShardSet) -> bool:
    """Return whether the newer set has all rows of the older one, removed ones too."""
    num_files = len(old.index.stored_sizes)
    if old.index.crc32 is None or new.index.crc32 is None or num_files > len(new.index.stored_sizes):
        return False
    return np.array_equal(old.index.crc32, new.index.crc32[:num_files])


def changed_numbers(old: ShardSet, new: ShardSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the samples that only the old version has, and of those that only the new one has."""
    old_rows, new_rows = np.flatnonzero(old.index.is_sample), np.flatnonzero(new.index.is_sample)
    gone = ~np.isin(old_rows, new_rows, assume_unique=True)
    came = ~np.isin(new_rows, old_rows, assume_unique=True)
    return np.flatnonzero(gone), np.flatnonzero(came)


def content_hash(shards: ShardSet, number: int) -> bytes:
    """Return a hash of a sample: its facts, among them its ids, and its images."""
    members, facts = shards.read_members(number, MEMBERS)
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    for name, data in sorted(members.items()):
        digest.update(f"{name} {len(data)} ".encode())
        digest.update(data)
    return digest.digest()


def compare_catalogs(old: ShardSet, new: ShardSet) -> CatalogDifference:
    """Return the products that differ between two versions of a catalog; only rows that came or went are read."""
    gone, came = changed_numbers(old, new)
    contents: tuple[dict[str, list[bytes]], ...] = (defaultdict(list), defaultdict(list))
    # all rows of a product that lost or got one
    touched = np.union1d(old.keys[gone], new.keys[came])
    for shards, found in zip((old, new), contents, strict=True):
        for number in np.flatnonzero(np.isin(shards.keys, touched)).tolist():
            found[shards.read_facts(number)["product_id"]].append(content_hash(shards, number))
    before, after = contents
    both = sorted(before.keys() & after.keys())
    replaced = [product_id for product_id in both if sorted(before[product_id]) != sorted(after[product_id])]
    return CatalogDifference(sorted(after.keys() - before.keys()), replaced, sorted(before.keys() - after.keys()))
