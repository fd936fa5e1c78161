"""The training log: each scalar by its epoch or step, the last value of a resumed run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mim_lightning.analysis.figures.training_log import read_log

HIT, LOSS = "val/image_to_image/hit@1", "train/loss/query_product"


def write_csv(folder: Path, version: int, *lines: str) -> None:
    path = folder / "csv" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines))


def test_scalars_are_read_by_epoch_or_step_from_before_training_on(tmp_path: Path) -> None:
    write_csv(
        tmp_path,
        0,
        f"epoch,lr-AdamW,step,{LOSS},{HIT}",
        "-1.0,,0,,0.01",
        ",0.001,9,,",
        "0,,9,4.5,",
        "0,,12,,0.25",
        "1,,19,3.5,",
        "1,,25,,0.5",
    )
    log = read_log(tmp_path)
    assert log.by_epoch == {HIT: {-1: 0.01, 0: 0.25, 1: 0.5}}
    assert list(log.by_epoch[HIT]) == [-1, 0, 1]
    assert log.by_step == {LOSS: {9: 4.5, 19: 3.5}, "lr-AdamW": {9: 0.001}}
    assert log.by_pass == {HIT: {0: 0.01, 13: 0.25, 26: 0.5}} and not log.has_passes_within_epochs


def test_each_validation_of_an_epoch_has_its_step(tmp_path: Path) -> None:
    rows = (f"epoch,step,{HIT}", "-1,0,0.01", "0,0,0.2", "0,4,0.3", "0,9,0.4", "1,14,0.5")
    write_csv(tmp_path, 0, *rows)
    log = read_log(tmp_path)
    assert log.by_epoch == {HIT: {-1: 0.01, 0: 0.4, 1: 0.5}} and log.has_passes_within_epochs
    assert list(log.by_pass[HIT].items()) == [(0, 0.01), (1, 0.2), (5, 0.3), (10, 0.4), (15, 0.5)]


def test_a_resumed_run_overrides_repeated_steps_and_keeps_earlier_ones(tmp_path: Path) -> None:
    header = f"epoch,step,{LOSS},{HIT}"
    write_csv(tmp_path, 2, header, "0,5,5.0,", "0,9,,0.1", "1,15,4.0,")
    write_csv(tmp_path, 10, header, "1,15,3.0,", "1,19,,0.3")  # the eleventh start, not the second
    write_csv(tmp_path, 9, header, "1,15,3.7,", "1,19,,0.2")
    log = read_log(tmp_path)
    assert log.by_step[LOSS] == {5: 5.0, 15: 3.0}
    assert log.by_epoch[HIT] == {0: 0.1, 1: 0.3}


def test_a_partial_line_is_left_out(tmp_path: Path) -> None:
    write_csv(tmp_path, 0, f"epoch,step,{LOSS},{HIT}", "0,5,5.0,", "0,9,4.")
    assert read_log(tmp_path).by_step == {LOSS: {5: 5.0}}


def test_mistakes_name_file_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}: contains no csv/version_\*/metrics.csv"):
        read_log(tmp_path)
    write_csv(tmp_path, 0, f"epoch,step,{LOSS},{HIT}", "0,5,5.0,", "0,9,many,")
    with pytest.raises(ValueError, match=rf"version_0/metrics.csv, line 3, column '{LOSS}': 'many' is not a number"):
        read_log(tmp_path)
