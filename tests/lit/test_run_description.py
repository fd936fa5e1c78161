"""Lines before training: texts that are cut, epochs of different lengths."""

from pathlib import Path

import pytest
from lightning import Trainer

from mim_lightning.config import build, build_matcher, compose
from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.lit.run_description import describe_cut_texts, describe_limit
from tests.shop import small


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


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"limit_train_batches": 2}, "has 1 batches and not 2; data.rows_per_epoch=16 makes"),
        ({"limit_train_batches": 0.67}, "has 1 batches and not 2; data.rows_per_epoch=16 makes"),
        ({"limit_train_batches": 1}, None),  # divides the pass
        ({"limit_train_batches": 1.0}, None),
        ({"limit_train_batches": 3}, None),
        ({"limit_train_batches": 2, "max_epochs": 1}, None),
        ({"fast_dev_run": 2}, None),
    ],
)
def test_epochs_of_different_lengths_are_said_with_the_key_that_makes_them_equal(
    shop: Path, options: dict, line: str | None
) -> None:
    datamodule, _ = opened(shop)
    assert datamodule.present_order().num_batches == 3
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lines = list(describe_limit(Trainer(**{"max_epochs": 4, **quiet, **options}), datamodule))
    assert len(lines) == (line is not None) and (line or "") in "".join(lines)
