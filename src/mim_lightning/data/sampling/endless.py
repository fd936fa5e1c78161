"""Epochs shorter or longer than a pass: the batches of pass after pass, counted off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mim_lightning.data.sampling.order import BatchOrder, StateKey, StreamedOrder


@dataclass(frozen=True)
class EndlessOrder:
    """Epochs of `num_rows` rows over the endless sequence of passes of an order.

    The batches of all passes are numbered through; epoch e has those from e x `num_batches` on. Every row occurs once
    before any occurs twice, whatever the length of an epoch, and a batch of pass p is what it would be in epoch p of
    `order`. No batch has rows of two passes: the last one of a pass has what is left, and may be smaller, at any place
    in an epoch. A position counts it as full.

    Args:
        order: its epochs are passes over a set.
        num_rows: rounded up to whole batches.
    """

    order: BatchOrder
    num_rows: int

    @property
    def num_batches(self) -> int:
        num_passes, num_rows = divmod(self.num_rows, self.order.num_samples)
        return num_passes * self.order.num_batches - (-num_rows // self.global_batch_size)

    @property
    def num_samples(self) -> int:
        return self.num_batches * self.global_batch_size

    @property
    def global_batch_size(self) -> int:
        return self.order.global_batch_size

    @property
    def shuffle(self) -> bool:
        return self.order.shuffle

    def state_key(self) -> StateKey:
        return {**self.order.state_key(), "rows_per_epoch": self.num_rows}

    def passes(self) -> Mapping[str, StreamedOrder]:
        return self.order.passes()

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        batch_idx = epoch * self.num_batches - (-start // self.global_batch_size)
        stop = (epoch + 1) * self.num_batches
        while batch_idx < stop:
            pass_idx, num_done = divmod(batch_idx, self.order.num_batches)
            batches = self.order.batches(pass_idx, num_done * self.global_batch_size)
            for batch in islice(batches, stop - batch_idx):
                yield batch
                batch_idx += 1


def in_epochs(order: BatchOrder, num_rows: int | None) -> BatchOrder:
    """Return an order with epochs of `num_rows` rows, rounded up to whole batches; None: of a pass each."""
    return order if num_rows is None else EndlessOrder(order, num_rows)
