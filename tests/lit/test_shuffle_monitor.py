"""What a run says of its shuffle windows, and that it warns where the same rows meet in pass after pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mim_lightning.data.sampling.order import BatchOrder
from mim_lightning.data.sampling.shuffled import ShuffledOrder
from mim_lightning.lit import ShuffleMonitor
from mim_lightning.lit.callbacks import shuffle_monitor
from mim_lightning.lit.shuffle_window import describe_windows

SMALL, LARGE = (ShuffledOrder((20,) * 200, 164, window=window) for window in (8, 34))


def messages(order: BatchOrder, monkeypatch: pytest.MonkeyPatch, step: int = 0, **options: Any) -> tuple[list, list]:
    """Return the lines that are printed when training begins, and the rows that are logged."""
    lines: list[str] = []
    rows: list[dict[str, float]] = []
    monkeypatch.setattr(shuffle_monitor, "StreamLoader", SimpleNamespace)
    monkeypatch.setattr(shuffle_monitor, "rank_zero_info", lines.append)
    monkeypatch.setattr(shuffle_monitor, "warn", lines.append)
    logger = SimpleNamespace(log_metrics=lambda row, step: rows.append({**row, "step": step}))
    trainer: Any = SimpleNamespace(
        train_dataloader=SimpleNamespace(order=order),
        fast_dev_run=False,
        is_global_zero=True,
        global_step=step,
        loggers=[logger],
    )
    ShuffleMonitor(**options).on_train_start(trainer, trainer)
    return lines, rows


def test_a_window_of_one_batch_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, rows = messages(SMALL, monkeypatch)
    assert "in 6" in lines[0] and "in 4.1% if all rows were shuffled together" in lines[0]
    assert lines[1].startswith("data.shuffle_window_shards=8 holds 1.0 batches: the same rows are negatives of each")
    assert lines[1].endswith("; 34 would hold 4.1")
    assert rows[0]["train/shuffle_meet_again"] > 0.5 and rows[0]["step"] == 0
    assert len(messages(SMALL, monkeypatch, max_meet_again=None)[0]) == 1
    lines, rows = messages(LARGE, monkeypatch, step=7)
    assert len(lines) == 1 and rows == [], "a run that resumes has logged it"
    with pytest.raises(ValueError, match=r"callbacks.shuffle_quality.max_meet_again=2: give a fraction"):
        ShuffleMonitor(2)


def test_a_batch_of_half_the_set_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(messages(ShuffledOrder((20,) * 6, 60), monkeypatch)[0]) == 1


@pytest.mark.parametrize(("folder", "where"), [("local", "memory"), (None, "data.cache.max_size=20GB")])
def test_a_window_is_described_by_what_it_takes(tmp_path: Any, folder: str | None, where: str) -> None:
    index = SimpleNamespace(num_bytes=np.full(200, 1_000_000))
    place = "s3://a/b" if folder is None else tmp_path
    shards: Any = SimpleNamespace(index=index, folder=place, cache=SimpleNamespace(max_size="20GB"))
    assert list(describe_windows(LARGE, shards)) == [
        f"shuffled over 34 of 200 shards at a time, 680 rows or 4.1 batches: 34.0 MB that should fit {where}"
    ]
    many = ShuffledOrder((20,) * 1000, 160, window=300)
    index.num_bytes = None
    (line,) = describe_windows(many, shards)
    assert line.endswith("37.5 batches; a loader process keeps 256 files open and opens others again and again")
