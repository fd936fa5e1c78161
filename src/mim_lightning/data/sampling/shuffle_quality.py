"""How well an order shuffles: whether the same rows meet in a batch pass after pass, estimated without reading a row.

Rows of one shard are shuffled within a window of shards. If a window holds little more than a batch, two of them share
a batch in every pass, and are negatives of each other again and again while others never are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np

from mim_lightning.data.sampling.order import StreamedOrder

RUN_LENGTH = 4  # consecutive batches that are counted from each place; one window often has them all
MAX_RUNS, MAX_ROWS = 32, 2_000_000  # rows that are shuffled to count


@dataclass(frozen=True)
class ShuffleQuality:
    """How often two rows of a shard that share a batch share one in the next pass too.

    Attributes:
        meet_again: the probability, 0 to 1, in this order.
        uniform: the same if all rows were shuffled together: a batch's fraction of the set.
    """

    meet_again: float
    uniform: float


def measure_shuffle(order: StreamedOrder) -> ShuffleQuality:
    """Count pairs of rows of one shard in a few batches of a pass, chosen by the order's seed.

    Passes are shuffled independently of each other: two rows that met meet again as often as any two rows of a shard
    share a batch, which one pass shows. (Rows of one product, which a grouped order brings together, meet more often;
    they are few of a shard's pairs.)
    """
    shard_starts = np.cumsum(order.shard_sizes) - order.shard_sizes
    rows = order.rows_by_shard
    num_pairs = float(np.maximum(rows * (rows - 1), 0).sum())
    rows_of_window = order.window * order.num_streams * rows.mean()
    num_runs = int(np.clip(MAX_ROWS / max(rows_of_window, order.global_batch_size), 1, MAX_RUNS))
    starts = np.arange(0, order.num_batches, RUN_LENGTH)
    if len(starts) > num_runs:
        starts = np.random.default_rng([order.seed, len(starts)]).choice(order.num_batches, num_runs, replace=False)
    num_counted, num_together = 0, 0
    for start in np.sort(starts).tolist():
        for batch in islice(order.batches(0, start * order.global_batch_size), RUN_LENGTH):
            _, counts = np.unique(np.searchsorted(shard_starts, batch, "right"), return_counts=True)
            num_together += int((counts * (counts - 1)).sum())
            num_counted += 1
    batch_size, num_rows = min(order.global_batch_size, order.num_samples), order.num_samples
    mean = num_together / max(1, num_counted) * order.num_batches
    return ShuffleQuality(
        meet_again=min(1.0, mean / num_pairs) if num_pairs else 0.0,
        uniform=(batch_size - 1) / max(1, num_rows - 1),
    )
