"""A sampled gallery: every product that answers an evaluated query, and distractors drawn from the others.

The draw hashes ids with a seed: it is the same in every epoch, for any number of processes and order of the catalog.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mim_lightning.data.sampling.order import StateKey
from mim_lightning.data.shards.shard_set import KEYS_AT_ONCE, ShardSet
from mim_lightning.ids import hash_id


def sample_gallery(
    gallery: Sequence[ShardSet], queries: ShardSet, num_distractors: int, seed: int = 0
) -> list[np.ndarray]:
    """Return the sample numbers of the sampled products in each set of the gallery, ascending.

    All rows of a product are in the sample. The answers are target and reference products of the queries; distractors
    are the other products with the smallest hashes, all of them if there are not more.
    """
    answers = _answers_of(queries)
    smallest = np.empty(0, dtype=np.uint64)
    for shards in gallery:
        for _, keys in _blocks_of(shards):
            drawn = _hash(np.setdiff1d(keys, answers), seed)
            smallest = np.union1d(smallest, drawn)[:num_distractors]  # sorted
    numbers = []
    for shards in gallery:
        chosen = [
            start + np.flatnonzero(np.isin(keys, answers) | np.isin(_hash(keys, seed), smallest))
            for start, keys in _blocks_of(shards)
        ]
        numbers.append(np.concatenate(chosen))
    return numbers


def _answers_of(queries: ShardSet) -> np.ndarray:
    """Return the keys of all products that are relevant to a query, in whichever direction, ascending."""
    answers: set[int] = set()
    for facts in queries.all_facts():
        answers.update(hash_id(product) for name in ("asked_ids", "shown_ids") for product in facts.get(name, ()))
    return np.array(sorted(answers), dtype=np.int64)


def _blocks_of(shards: ShardSet) -> Iterator[tuple[int, np.ndarray]]:
    keys = shards.keys
    for start in range(0, len(keys), KEYS_AT_ONCE):
        yield start, np.asarray(keys[start : start + KEYS_AT_ONCE])


def _hash(keys: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.uint64]:
    """Return a hash of each key: another number for every key.

    Source: the finalizer of SplitMix64 (Steele et al. 2014), of the key and, hashed before, the seed.
    """
    mixed = np.array([seed], dtype=np.uint64)
    for values in (np.zeros(1, dtype=np.uint64), keys.astype(np.uint64)):
        mixed = (values ^ mixed) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


@dataclass(frozen=True)
class SelectedOrder:
    """One pass over some samples of a set, in stored order."""

    numbers: np.ndarray  # ascending
    global_batch_size: int
    shuffle: bool = False

    @property
    def num_samples(self) -> int:
        return len(self.numbers)

    @property
    def num_batches(self) -> int:
        return -(-self.num_samples // self.global_batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        for first in range(start, self.num_samples, self.global_batch_size):
            yield self.numbers[first : first + self.global_batch_size]

    def passes(self) -> dict[str, Any]:
        return {}  # nothing is shuffled

    def state_key(self) -> StateKey:
        return {"order": "selected", "batch_size": self.global_batch_size, "num_samples": self.num_samples}
