"""Corrupt samples are skipped, counted and limited."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.loading.corrupt_samples import CorruptSamplePolicy
from mim_lightning.data.loading.loader import StreamLoader
from mim_lightning.data.sampling.shuffled import ShuffledOrder
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.shards.shard_writer import Record
from mim_lightning.lit.callbacks.corrupt_sample_log import CorruptSamples
from mim_lightning.types import Batch
from tests.shard_sets import write_shard_set


class Counting(LightningModule):
    """Learns nothing, from the rows that count."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.num_rows = 0

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.num_rows += int((~batch.is_padding).sum())
        return self.weight * 1.0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def damaged(tmp_path: Path) -> ShardSet:
    """Twenty samples, of which the four of the last shard are gone."""
    write_shard_set(tmp_path / "set", [Record({}, {"query_id": f"q{number}"}) for number in range(20)], 20, 4)
    (tmp_path / "set" / "000004.tar").unlink()
    return ShardSet(tmp_path / "set")


def train(
    shards: ShardSet, folder: Path, max_corrupt_samples: str | int, on_corrupt_sample: str = "skip"
) -> tuple[Trainer, Counting]:
    order = ShuffledOrder(tuple(shards.sizes), 8)
    loader = StreamLoader(
        shards, Collate({}), order, policy=CorruptSamplePolicy(on_corrupt_sample, max_corrupt_samples)
    )
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    logger = CSVLogger(folder, name="", version="log")
    trainer = Trainer(
        max_epochs=2,
        logger=logger,
        callbacks=[CorruptSamples()],
        enable_checkpointing=False,
        log_every_n_steps=10,
        **quiet,
    )
    module = Counting()
    trainer.fit(module, loader)
    return trainer, module


def test_skipped_samples_are_logged_every_epoch(
    damaged: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, module = train(damaged, tmp_path, "20%")
    assert module.num_rows == 2 * 16
    rows = list(csv.DictReader((tmp_path / "log" / "metrics.csv").open()))
    assert [row["train/skipped_samples"] for row in rows] == ["4.0", "4.0"]
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("epoch")]
    assert lines == ["epoch 0: skipped 4/20 samples", "epoch 1: skipped 4/20 samples"]


def test_nothing_is_logged_where_nothing_may_be_skipped(tmp_path: Path) -> None:
    write_shard_set(tmp_path / "set", [Record({}, {"query_id": f"q{number}"}) for number in range(20)], 20, 4)
    trainer, _ = train(ShardSet(tmp_path / "set"), tmp_path, 0, on_corrupt_sample="raise")
    assert "train/skipped_samples" not in trainer.logged_metrics


def test_the_limit_applies_to_all_ranks_together(
    damaged: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank has skipped as many; neither is beyond the ceiling alone."""
    strategy = "lightning.pytorch.strategies.SingleDeviceStrategy.reduce"
    monkeypatch.setattr(strategy, lambda self, tensor, *args, reduce_op="mean", **rest: tensor * 2)
    with pytest.raises(
        ValueError, match=r"8 of 20 samples of the epoch cannot be read, more than data.max_corrupt_samples=7 \(7\)"
    ):
        train(damaged, tmp_path, 7)
