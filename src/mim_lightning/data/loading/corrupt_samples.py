"""Corrupt samples while training: stop at the first, or skip them up to a limit.

A skipped row stays in its batch without inputs and ids, marked as padding, so that every rank has equally many rows
and takes part in the same collectives.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.loading.references import CorruptReferenceError
from mim_lightning.data.shards.shard_set import ShardError, ShardSet
from mim_lightning.types import Batch, Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorruptSamplePolicy:
    """What to do about samples that cannot be read.

    Args:
        on_corrupt_sample: "raise" stops at the first, "skip" continues without them.
        max_corrupt_samples: how many may be skipped in an epoch: a percentage of its samples such as "1%", or a number.
    """

    on_corrupt_sample: str = "raise"
    max_corrupt_samples: str | int = "1%"

    def __post_init__(self) -> None:
        if self.on_corrupt_sample not in ("raise", "skip"):
            raise ValueError(f"data.on_corrupt_sample={self.on_corrupt_sample}: give raise or skip")
        self.limit(0)

    @property
    def skips(self) -> bool:
        return self.on_corrupt_sample == "skip"

    def limit(self, num_samples: int) -> int:
        """Return how many of an epoch's samples may be skipped."""
        text = str(self.max_corrupt_samples).strip()
        if text.isdecimal():
            return int(text)
        percent = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text)
        if percent is None or float(percent[1]) > 100:
            raise ValueError(f"data.max_corrupt_samples={text}: give a percentage such as 1%, or a number of samples")
        return math.floor(num_samples * float(percent[1]) / 100 + 1e-9)  # 0.1 % of 1,000 must not become 0.999


class SkippedSample(NamedTuple):
    """A sample that was skipped."""

    shard: str
    sample_num: int
    reason: str


class LoadedBatch(NamedTuple):
    """The result of a worker."""

    batch: Batch
    skipped: tuple[SkippedSample, ...] = ()


def load_batch(
    shards: ShardSet,
    collate: Collate,
    numbers: Sequence[int],
    num_padding: int,
    position: tuple[int, ...],
    skips: bool = False,
    buffer: Tensor | None = None,
) -> LoadedBatch:
    """Read and collate the rows of one rank's batch.

    Args:
        num_padding: number of rows at the end that are repeats.
        position: of the batch in the run, for the seed of the augmentation.
        skips: skip samples that cannot be read; of one whose reference cannot, the reference alone.
        buffer: for the images, see `Collate`.

    Raises:
        ValueError: a sample or reference cannot be read and is not skipped; names it.
    """
    found, skipped = dict[int, Sample](), []
    # shard by shard: a disk cache that does not hold those of a batch downloads each once, not for every row
    for row in sorted(range(len(numbers)), key=numbers.__getitem__):
        number, is_repeat = numbers[row], row >= len(numbers) - num_padding
        try:
            (found[row],) = shards.read([number], is_repeat)
        except ShardError as error:
            if not skips:
                raise
            found[row] = _empty(number)
            if not is_repeat:  # each sample is counted once
                skipped.append(_skipped(shards, number, str(error)))
    samples = [found[row] for row in range(len(numbers))]
    try:
        return LoadedBatch(collate(samples, position, buffer), tuple(skipped))
    except ValueError as error:
        if not skips and isinstance(error, CorruptReferenceError):
            raise
        if not skips:
            raise ValueError(f"{shards.folder}: {error}") from error
    left_out = set[int]()  # samples without their references
    for row, sample in enumerate(samples):
        try:
            try:
                collate([sample], position)
            except CorruptReferenceError as error:
                left_out.add(sample.sample_num)
                skipped.append(_skipped(shards, sample.sample_num, str(error)))
                collate([sample], position, left_out=left_out)
        except ValueError as error:
            samples[row] = _empty(sample.sample_num)
            if not sample.is_padding:
                skipped.append(_skipped(shards, sample.sample_num, f"{shards.folder}: {error}"))
    return LoadedBatch(collate(samples, position, buffer, left_out), tuple(skipped))


def _empty(number: int) -> Sample:
    return Sample(number, inputs={}, is_padding=True)


def _skipped(shards: ShardSet, number: int, reason: str) -> SkippedSample:
    return SkippedSample(shards.shard_name(int(shards.shards_of(number))), number, reason)


@dataclass
class SkipCounter:
    """The number of samples that one rank has skipped in an epoch.

    Args:
        policy: limits it.
        folder: of the set, for errors.
        num_samples: of the epoch, on all ranks.
    """

    policy: CorruptSamplePolicy
    folder: str
    num_samples: int
    num_skipped: int = 0
    _logged: set[str] = field(default_factory=set)  # shards

    def restart(self) -> None:
        self.num_skipped = 0

    def add(self, skipped: Iterable[SkippedSample]) -> None:
        """Count skipped samples, and log the first of each shard.

        Raises:
            ValueError: this rank alone has skipped more than all ranks may.
        """
        for sample in skipped:
            self.num_skipped += 1
            if sample.shard not in self._logged:
                self._logged.add(sample.shard)
                log.warning("skipped: %s (further samples of this shard are only counted)", sample.reason)
            self.validate_limit(self.num_skipped, sample.reason)

    def validate_limit(self, num_skipped: int, reason: str = "") -> None:
        """Raise ValueError if more samples were skipped, on one rank or all, than the policy allows."""
        limit = self.policy.limit(self.num_samples)
        if num_skipped > limit:
            raise ValueError(
                f"{self.folder}: {num_skipped} of {self.num_samples} samples of the epoch cannot be read, "
                f"more than data.max_corrupt_samples={self.policy.max_corrupt_samples} ({limit})"
                + (f"; the last: {reason}" if reason else "")
            )
