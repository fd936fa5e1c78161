"""Terminal output: progress bar, cut texts, table of results; no line wraps at 80 columns."""

import csv
import shlex
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, LightningModule, Trainer
from rich.console import Console

from mim_lightning.cli import _quoted
from mim_lightning.config import build, build_matcher, compose
from mim_lightning.evaluate import VERBATIM_KEYS
from mim_lightning.lit.console import ProgressBar, describe_cut_texts, describe_decline, describe_sample, print_run
from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.run import Run
from mim_lightning.types import Batch, sampled_name
from tests.shop import small

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


RESULTS = {"val/image_to_image/hit@1": 0.5, "val/image_to_image/hit@10": 0.75, "initial/image_to_image/hit@1": 0.125}
COUNTS = {
    "num_products": 5,
    "counts/image_to_image/num_queries": 7,
    "counts/image_to_image/num_unanswerable": 1,
    "counts/text_to_text/num_queries": 8,
    "counts/text_to_text/num_unanswerable": 0,
}


def test_a_run_page_shows_directions_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    print_run("a run", RESULTS | COUNTS)
    out = capsys.readouterr().out
    assert "  7 to 8 queries against 5 products\n  0 to 1 queries left out: none of their products" in out
    (row,) = [line for line in out.splitlines() if "image_to_image" in line]
    assert row.split() == ["image_to_image", "7", "-", "0.125", "0.500", "-", "0.750"]


def test_kinds_of_queries_are_listed_below_their_direction(capsys: pytest.CaptureFixture[str]) -> None:
    words = {
        "segments/image_to_image/words=with/hit@1": 0.25,
        "segments/image_to_image/words=with/num_queries": 3,
        "segments/image_to_image/words=without/hit@1": 1.0,
        "segments/image_to_image/words=without/hit@1/low": 0.5,
        "segments/image_to_image/words=without/hit@1/high": 1.0,
        "segments/image_to_image/words=without/num_queries": 4,
        "counts/image_to_image/num_with_words": 3,
        "counts/image_to_image/num_in_gallery": 2,
        "counts/image_to_image/num_repeated": 1,
    }
    print_run("a run", RESULTS | COUNTS | words)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    place = next(i for i, line in enumerate(lines) if line[:1] == ["image_to_image"])
    assert lines[place][:3] == ["image_to_image", "7", "3"]
    assert lines[place + 1] == ["words=with", "3", "0.250", "-", "-"]
    assert lines[place + 2] == ["words=without", "4", "1.000", "0.50", "-", "1.00", "-"]
    text = " ".join(word for line in lines for word in line)
    assert "image_to_image: 2 queries left out, image is in the gallery" in text
    assert text.endswith("image_to_image: 1 query left out, same image and answer again")


def test_a_result_below_the_initial_models_is_reported() -> None:
    monitor = "val/image_to_image/hit@1"
    assert describe_decline(RESULTS, monitor) is None
    worse = describe_decline(RESULTS | {"initial/image_to_image/hit@1": 0.75}, monitor)
    assert worse is not None and f"{monitor} worse: 0.500, 0.750 before training" in worse
    assert describe_decline({monitor: 0.5}, monitor) is None  # no sanity pass, nothing to compare with


def opened(shop: Path, *overrides: str) -> tuple[MatchDataModule, dict]:
    config = compose("train", small(shop, *overrides))
    datamodule = build(config["data"], specs=build_matcher(config).input_specs())
    datamodule.prepare_data()
    return datamodule, config


def lengthen(shop: Path) -> None:
    """Give two of the seven products titles of 40 words."""
    table = shop / "shop" / "products.csv"
    table.write_text(table.read_text().replace("red disc", "red " * 40).replace("green box", "green " * 50))


def test_cut_texts_are_counted_and_the_advised_key_reads_them(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengthen(shop)
    datamodule, config = opened(shop)
    (line,) = describe_cut_texts(datamodule, config)
    counted, advice = line.splitlines()
    assert counted == "  29% of product_text are cut after 32 tokens (median 2 of 7 texts)"
    assert advice == "  encoder.text.max_length=50 reads them whole"
    assert max(map(len, line.splitlines())) <= 80
    assert "product_text: 28.6 % are truncated to 32 tokens" in capsys.readouterr().out
    assert list(describe_cut_texts(*opened(shop, advice.split()[0]))) == []


def test_texts_that_are_read_whole_are_not_mentioned(shop: Path) -> None:
    assert list(describe_cut_texts(*opened(shop))) == []


def test_results_of_a_sample_name_the_command_for_the_whole_gallery(tmp_path: Path) -> None:
    folder = tmp_path / "a, b's"
    checkpoint = folder / "best.ckpt"
    assert describe_sample(RESULTS, folder, checkpoint) is None
    name = sampled_name("hit@1", 100)
    line = describe_sample({f"val/image_to_image/{name}": 0.5}, folder, checkpoint)
    assert line is not None
    words = [f"checkpoint={checkpoint}", "whole_gallery=true", f"output={folder}/whole_gallery"]
    assert shlex.split(line.partition("evaluate ")[2]) == words
    config = compose("evaluate", [_quoted(word, VERBATIM_KEYS) for word in words])
    assert (config["checkpoint"], config["output"]) == (str(checkpoint), f"{folder}/whole_gallery")
