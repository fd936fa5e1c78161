"""The rows that an evaluation embeds: all queries and the gallery, or a sample of it, in which batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mim_lightning.data.sampling.gallery_sample import SelectedOrder, sample_gallery
from mim_lightning.data.sampling.order import BatchOrder
from mim_lightning.data.sampling.shuffled import sequential_order
from mim_lightning.data.shards.shard_set import ShardSet

Samples = list[np.ndarray]  # of each set, by number
Draw = Callable[[], Samples]


class EvaluatedRows:
    """Which rows of the queries, and of each set of the gallery, are evaluated; sets are numbered in this order.

    Args:
        sets: returns the queries and the sets of the gallery.
        batch_size: rows of all processes together; of each one with `as_one_process`.

    Attributes:
        as_one_process: whether each process evaluates a run of the very batches that one alone would make, so that
            vectors are equal to the last bit; one needs as much memory for a batch then as one alone.
        gallery_numbers: the samples of each set of the gallery that are evaluated; None: all.
    """

    def __init__(self, sets: Callable[[], Sequence[ShardSet]], batch_size: int) -> None:
        self.sets, self.batch_size, self.as_one_process = sets, batch_size, False
        self.gallery_numbers: Samples | None = None
        self._gallery_sample: tuple[int, int] | None = None
        self._embedded: dict[int, np.ndarray] = {}  # by number of the set

    def sample_gallery(self, num_distractors: int | None, seed: int, ask_one: Callable[[Draw], Samples]) -> None:
        """Evaluate against a sample of the gallery, see `data.sampling.gallery_sample`; None: against the whole.

        Args:
            ask_one: has one process draw, which reads the facts of all queries, and returns on each what was drawn.
        """
        sample = None if num_distractors is None else (num_distractors, seed)
        if sample == self._gallery_sample:
            return

        def draw() -> Samples:
            queries, *gallery = self.sets()
            assert sample is not None
            return sample_gallery(gallery, queries, *sample)

        self.gallery_numbers = None if sample is None else ask_one(draw)
        self._gallery_sample = sample

    def parts(self) -> list[tuple[ShardSet, np.ndarray | None]]:
        """Return each set, and which of its samples are evaluated; None: all."""
        queries, *gallery = self.sets()
        chosen: Sequence[np.ndarray | None] = self.gallery_numbers or (None,) * len(gallery)
        return [(queries, None), *zip(gallery, chosen, strict=True)]

    def counts(self) -> list[int]:
        """Return the rows of each set that a whole pass evaluates."""
        return [len(shards) if numbers is None else len(numbers) for shards, numbers in self.parts()]

    def last_batches(self) -> list[int]:
        """Return the first sample of the last batch of each set, in the batches that one process would make.

        -1 of a set without rows: the sample of a gallery may have none of the distractors' set.
        """
        return [
            start if numbers is None else int(numbers[start]) if num_rows else -1
            for (_, numbers), num_rows in zip(self.parts(), self.counts(), strict=True)
            for start in [(num_rows - 1) // self.batch_size * self.batch_size]
        ]

    def skip_embedded(self, embedded: Mapping[int, np.ndarray]) -> None:
        """Leave out batches of one process whose rows were embedded before; never the last one of a set.

        Args:
            embedded: the number of the first sample of each such batch, by number of the set.
        """
        assert self.as_one_process
        self._embedded = dict(embedded)

    def order(self, idx: int, shards: ShardSet, numbers: np.ndarray | None, world_size: int) -> BatchOrder:
        """Return the batches of a set, global or as one process makes them, without those embedded before.

        Args:
            idx: number of the set.
            numbers: of the samples; None: all.
        """
        num_rows = len(shards) if numbers is None else max(1, len(numbers))
        batch_size = min(self.batch_size, num_rows)
        if (embedded := self._embedded.get(idx)) is not None:
            numbers = np.arange(num_rows) if numbers is None else numbers
            is_left = ~np.isin(numbers[::batch_size], embedded)
            is_left[-1:] = True  # Lightning leaves out a pass without batches
            numbers = numbers[np.repeat(is_left, batch_size)[: len(numbers)]]
        if not self.as_one_process:  # every rank needs a row, to take part in the collectives
            batch_size = -(-batch_size // world_size) * world_size
        return sequential_order(shards, batch_size) if numbers is None else SelectedOrder(numbers, batch_size)
