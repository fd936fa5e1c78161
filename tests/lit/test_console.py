"""The progress bar; no line wraps at 80 columns."""

import csv
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from lightning import Callback, LightningModule, Trainer
from rich.console import Console

from mim_lightning.lit.console import ProgressBar
from mim_lightning.run import Run
from mim_lightning.types import Batch

LINES: list[list[str]] = []  # of the bar, at 80 columns
SEEN: list[tuple[int, float, int, float]] = []  # epoch, loss of the batch, its rows, loss on the bar


class Recorder(Callback):
    """Notes after every batch what it cost, and what the bar shows."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        bar = next(callback for callback in trainer.callbacks if isinstance(callback, ProgressBar))  # type: ignore[attr-defined]
        shown = bar.get_metrics(trainer, pl_module)["loss"]
        assert bar.progress is not None
        text = Console(width=80, file=StringIO(), record=True)
        text.print(bar.progress.make_tasks_table(bar.progress.tasks))
        LINES.append(text.export_text().splitlines())
        SEEN.append((trainer.current_epoch, float(outputs["loss"]), len(batch), shown))


def test_the_bar_and_the_log_show_the_mean_of_the_epoch(fit: Callable[..., Run]) -> None:
    SEEN.clear(), LINES.clear()
    run = fit(
        "callbacks.progress_bar={_target_: mim_lightning.lit.ProgressBar}",
        "+callbacks.recorder={_target_: tests.lit.test_console.Recorder}",
    )
    assert len({rows for _, _, rows, _ in SEEN}) == 2  # the last batch is a partial one
    for lines in LINES:
        assert all(line.startswith("Epoch") and "loss:" in line and len(line) <= 80 for line in lines), lines
    assert "hit@1:" in LINES[-1][-1]
    means = {}
    for epoch in (0, 1):
        total, count = 0.0, 0
        for _, loss, rows, shown in [entry for entry in SEEN if entry[0] == epoch]:
            total, count = total + loss * rows, count + rows
            assert shown == pytest.approx(total / count)
        means[epoch] = total / count
    (path,) = (run.folder / "csv").rglob("metrics.csv")
    with path.open() as file:
        logged = {
            int(row["epoch"]): float(row["train/epoch_loss"]) for row in csv.DictReader(file) if row["train/epoch_loss"]
        }
    assert logged == pytest.approx(means, rel=1e-5)
