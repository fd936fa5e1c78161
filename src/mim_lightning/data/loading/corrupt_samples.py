"""Samples that cannot be read: a run stops at the first, or goes on without them up to a ceiling.

Samples' numbers come in, a Batch of as many rows goes out, with word of what was left out; `stream` calls it, in the
loader's workers and, to count, in the main process. A row that is left out stays in the batch without inputs and
ids, marked as padding, so that every rank has as many rows as the others and takes part in the same collectives.
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
from mim_lightning.data.shards.shard_set import ShardError, ShardSet
from mim_lightning.types import Batch, Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadSamples:
    """What is done about samples that cannot be read, while training.

    Args:
        on_corrupt_sample: "raise" stops at the first, "skip" continues without them.
        max_corrupt_samples: how many may be skipped in an epoch: a fraction of its rows such as "1%", or a number.
    """

    on_corrupt_sample: str = "raise"
    max_corrupt_samples: str | int = "1%"

    def __post_init__(self) -> None:
        if self.on_corrupt_sample not in ("raise", "skip"):
            raise ValueError(f"data.on_corrupt_sample={self.on_corrupt_sample}: give raise or skip")
        self.ceiling(0)

    @property
    def are_skipped(self) -> bool:
        return self.on_corrupt_sample == "skip"

    def ceiling(self, num_samples: int) -> int:
        """Return how many of an epoch's samples may be skipped."""
        text = str(self.max_corrupt_samples).strip()
        if text.isdecimal():
            return int(text)
        share = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text)
        if share is None or float(share[1]) > 100:
            raise ValueError(
                f"data.max_corrupt_samples={text}: give a fraction such as 1%, or a whole number of samples"
            )
        return math.floor(num_samples * float(share[1]) / 100 + 1e-9)  # 0.1 % of 1,000 must not become 0.999


class Skip(NamedTuple):
    """A sample that was left out."""

    shard: str
    sample_num: int
    reason: str


class Loaded(NamedTuple):
    """What a worker hands over."""

    batch: Batch
    skips: tuple[Skip, ...] = ()


def load(
    shards: ShardSet,
    collate: Collate,
    numbers: Sequence[int],
    num_padding: int,
    position: tuple[int, ...],
    are_skipped: bool = False,
    buffer: Tensor | None = None,
) -> Loaded:
    """Read and collate the rows of one rank's batch.

    Args:
        num_padding: the last so many rows are repeats.
        position: of the batch in the run, for the augmentation's seed.
        are_skipped: leave out rows that cannot be read.
        buffer: for the pictures, see `Collate`.

    Raises:
        ValueError: one cannot be read and is not to be left out; names it.
    """
    samples, skips = [], []
    for place, number in enumerate(numbers):
        is_repeat = place >= len(numbers) - num_padding
        try:
            samples += shards.read([number], is_repeat)
        except ShardError as error:
            if not are_skipped:
                raise
            samples.append(_empty(number))
            if not is_repeat:  # it is counted where it is no repeat
                skips.append(_skip(shards, number, str(error)))
    try:
        return Loaded(collate(samples, position, buffer), tuple(skips))
    except ValueError as error:
        if not are_skipped:
            raise ValueError(f"{shards.folder}: {error}") from error
    for place, sample in enumerate(samples):
        try:
            collate([sample], position)
        except ValueError as error:
            samples[place] = _empty(sample.sample_num)
            if not sample.is_padding:
                skips.append(_skip(shards, sample.sample_num, f"{shards.folder}: {error}"))
    return Loaded(collate(samples, position, buffer), tuple(skips))


def _empty(number: int) -> Sample:
    return Sample(number, inputs={}, is_padding=True)


def _skip(shards: ShardSet, number: int, reason: str) -> Skip:
    return Skip(shards.shard_name(int(shards.shards_of(number))), number, reason)


@dataclass
class SkipCount:
    """What one rank has left out of an epoch.

    Args:
        bad: up to where that is borne.
        folder: of the set, for errors.
        num_samples: of the epoch, on all ranks.
    """

    bad: BadSamples
    folder: str
    num_samples: int
    num_skipped: int = 0
    _seen: set[str] = field(default_factory=set)  # shards that were told of

    def restart(self) -> None:
        self.num_skipped = 0

    def add(self, skips: Iterable[Skip]) -> None:
        """Count, and tell the first of each shard.

        Raises:
            ValueError: this rank alone has skipped more than all may.
        """
        for skip in skips:
            self.num_skipped += 1
            if skip.shard not in self._seen:
                self._seen.add(skip.shard)
                log.warning("skipped: %s (further samples of this shard are only counted)", skip.reason)
            self.refuse_beyond_ceiling(self.num_skipped, skip.reason)

    def refuse_beyond_ceiling(self, num_skipped: int, reason: str = "") -> None:
        """Stop where more was left out, on one rank or all, than may be."""
        ceiling = self.bad.ceiling(self.num_samples)
        if num_skipped > ceiling:
            raise ValueError(
                f"{self.folder}: {num_skipped} of {self.num_samples} samples of the epoch cannot be read, "
                f"more than data.max_corrupt_samples={self.bad.max_corrupt_samples} ({ceiling})"
                + (f"; the last: {reason}" if reason else "")
            )
