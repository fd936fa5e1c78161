"""Reference products of composed rows: the product on the photo, where the words ask for another one.

A training row holds its target alone. Its photo is matched with the reference, whose image and texts are read from the
catalog, so that they join the batch as one more product.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mim_lightning.data.shards.mixture_set import ConcatShardSet
from mim_lightning.data.shards.shard_set import ShardError, ShardSet
from mim_lightning.fields import QUERY_IMAGE
from mim_lightning.ids import hash_id
from mim_lightning.types import Sample


class CorruptReferenceError(ValueError):
    """The reference of a sample cannot be read; names the catalog."""


@dataclass(frozen=True)
class ReferenceCatalog:
    """The catalog of a training set, sorted by product: 12 bytes a row, which forked workers share.

    Attributes:
        shards: the catalog.
        first: number of the first training sample of the set.
        prefix: of the set's ids, in a mixture.
    """

    shards: ShardSet
    first: int = 0
    prefix: str = ""
    _keys: np.ndarray = field(init=False, repr=False, compare=False)
    _numbers: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        order = np.argsort(self.shards.keys, kind="stable")
        object.__setattr__(self, "_keys", np.asarray(self.shards.keys)[order])
        object.__setattr__(self, "_numbers", order.astype(np.uint32 if len(order) < 1 << 32 else np.int64))

    def find(self, product_id: str) -> np.ndarray:
        """Return the rows of a product, one for each of its images; none if it was deleted."""
        key = hash_id(product_id.removeprefix(self.prefix))
        return self._numbers[slice(*np.searchsorted(self._keys, [key, key + 1]))]


class ReferenceReader:
    """Reads the reference product of each composed row; `catalogs` are in the order of their training samples."""

    def __init__(self, catalogs: Sequence[ReferenceCatalog]) -> None:
        self.catalogs = list(catalogs)
        self._starts = [catalog.first for catalog in catalogs]

    @classmethod
    def of(cls, train: ShardSet, catalogs: Mapping[str, ShardSet]) -> ReferenceReader:
        """Return the reader for a training set, or for the sets of a mixture, with their catalogs by name."""
        if not isinstance(train, ConcatShardSet):
            return cls([ReferenceCatalog(shards) for shards in catalogs.values()])
        prefixes = {name: f"{name}:" if name in train.own_ids else "" for name in catalogs}
        return cls(
            [ReferenceCatalog(shards, train.set_start(name), prefixes[name]) for name, shards in catalogs.items()]
        )

    def read(self, samples: Sequence[Sample], left_out: Collection[int] = ()) -> list[Sample]:
        """Return for each sample its reference as a product without a query; padding where it brings none.

        Args:
            left_out: numbers of samples whose references are left out.

        Raises:
            CorruptReferenceError: a shard of the catalog is missing, damaged or not reachable.
        """
        read: dict[tuple[int, int], Sample] = {}
        return [
            _none(sample) if sample.sample_num in left_out else self._reference_of(sample, read) for sample in samples
        ]

    def corrupt(self, reference: Sample, error: str) -> CorruptReferenceError:
        """Return the error of a reference that was read and cannot be used."""
        folder = self.catalogs[self._set_of(reference)].shards.folder
        return CorruptReferenceError(
            f"{folder}: product '{reference.product_id}', the reference of sample {reference.sample_num}, {error}"
        )

    def _set_of(self, sample: Sample) -> int:
        return bisect_right(self._starts, sample.sample_num) - 1

    def _reference_of(self, sample: Sample, read: dict[tuple[int, int], Sample]) -> Sample:
        references = sample.reference_ids
        if sample.is_padding or not references or sample.product_id in references or QUERY_IMAGE not in sample.inputs:
            return _none(sample)
        set_idx = self._set_of(sample)
        catalog = self.catalogs[set_idx]
        numbers = catalog.find(references[0])
        if not len(numbers):
            return _none(sample)
        # the query's id chooses one of the product's images, in every epoch the same
        number = int(numbers[hash_id(sample.query_id or "") % len(numbers)])
        if (set_idx, number) not in read:
            try:
                (read[set_idx, number],) = catalog.shards.read_few([number])
            except ShardError as error:
                raise CorruptReferenceError(f"{error} (the reference of sample {sample.sample_num})") from error
        stored = read[set_idx, number]
        return Sample(sample.sample_num, stored.inputs, product_id=references[0], category=stored.category)


def _none(sample: Sample) -> Sample:
    return Sample(sample.sample_num, inputs={}, is_padding=True)
