"""Callback that logs, before the first epoch, how well the training rows are shuffled, and warns of a bad shuffle."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from mim_lightning.data.loading.loader import StreamLoader
from mim_lightning.data.sampling.order import EpochSettings, StreamedOrder
from mim_lightning.data.sampling.shuffle_quality import measure_shuffle
from mim_lightning.lit.console import warn

MEET_AGAIN, UNIFORM = "train/shuffle_meet_again", "train/shuffle_meet_again_uniform"
MUCH_WORSE = 2.0  # times the probability of rows that are shuffled together


class ShuffleMonitor(Callback):
    """Logs, when training begins, how often two rows of a shard that share a batch share one in the next pass too.

    `train/shuffle_meet_again` is that probability, 0 to 1, and `train/shuffle_meet_again_uniform` what it would be if
    all rows were shuffled together. Both are computed from the order, on rank 0, without reading a row; of a mixture
    they are of the set that is shuffled worst.

    Args:
        max_meet_again: probability from which on a warning names the key that mends it, if a uniform shuffle is much
            better; None: none.
    """

    def __init__(self, max_meet_again: float | None = 0.33) -> None:
        if max_meet_again is not None and not 0 < max_meet_again <= 1:
            raise ValueError(
                f"callbacks.shuffle_quality.max_meet_again={max_meet_again}: give a fraction, 0 to 1, or null"
            )
        self.max_meet_again = max_meet_again

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader = trainer.train_dataloader
        if not isinstance(loader, StreamLoader) or trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        measured = {name: (measure_shuffle(order), order) for name, order in loader.order.passes().items()}
        name, (found, order) = max(measured.items(), key=lambda item: item[1][0].meet_again)
        rows = f"rows of one shard of '{name}'" if name else "rows of one shard"
        rank_zero_info(
            f"shuffle: two {rows} that share a batch share one in the next pass too in {found.meet_again:.1%} "
            f"of cases; in {found.uniform:.1%} if all rows were shuffled together"
        )
        if not trainer.global_step:
            for logger in trainer.loggers:  # directly: a run that is stopped in this epoch would lose its means
                logger.log_metrics({MEET_AGAIN: found.meet_again, UNIFORM: found.uniform, "epoch": 0.0}, step=0)
        is_bad = self.max_meet_again is not None and found.meet_again > self.max_meet_again
        if is_bad and found.meet_again > MUCH_WORSE * found.uniform:
            warn(_describe_remedy(order))


def _describe_remedy(order: StreamedOrder) -> str:
    num_shards = len(order.shard_sizes)
    num_rows = round(order.rows_by_shard.sum())
    default = EpochSettings(order.global_batch_size, num_streams=order.num_streams).window_for(num_rows, num_shards)
    return (
        f"data.shuffle_window_shards={order.window} holds {_num_batches(order):.1f} batches: the same rows are "
        f"negatives of each other in pass after pass; {default} would hold {_num_batches(order, default):.1f}"
    )


def _num_batches(order: StreamedOrder, window: int | None = None) -> float:
    num_shards = min((window or order.window) * order.num_streams, len(order.shard_sizes))
    return float(num_shards * order.rows_by_shard.mean() / order.global_batch_size)
