"""The tables show every number, however narrow the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from mim_lightning.analysis.comparison.comparison import Comparison, compare_groups
from mim_lightning.analysis.comparison.tables import MAX_LABELS, print_comparison
from mim_lightning.analysis.run_groups import RunGroup
from mim_lightning.display.numbers import format_difference, format_interval, format_number
from tests.analysis.evaluations import Row, config, write_evaluation


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    arms = []
    for name, shift in (("2tower", 0), ("[4tower]", 1)):
        rows = [Row(f"q{q:02d}", f"p{q}", 1 + (q + shift) % 3, {"kind": f"kind {q % 20:02d}"}) for q in range(90)]
        arms.append(
            RunGroup(name, {0: (write_evaluation(tmp_path / name, rows, config(name), "image_to_asked_product"),)})
        )
    return compare_groups(arms)


def printed(comparison: Comparison, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    print_comparison(comparison, ["image_to_asked_product"], console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 140])
def test_every_number_is_there_in_full(comparison: Comparison, width: int) -> None:
    stdout = printed(comparison, width)
    assert max(map(len, stdout.splitlines())) <= width
    (row,) = comparison.overall
    for number in (row.baseline_mean, row.group_mean):
        assert format_number(number) in stdout
    assert (
        format_difference(row.difference) in stdout and format_interval(row.low, row.high, format_difference) in stdout
    )
    assert "image_to_asked_product" in stdout and "[4tower]" in stdout


def test_the_largest_labels_are_listed_the_others_counted(comparison: Comparison) -> None:
    stdout = printed(comparison, 140)
    labels = [line.split()[2] for line in stdout.splitlines() if line.split()[:2] == ["kind", "kind"]]
    assert len(labels) == MAX_LABELS
    assert labels[:10] == [f"{label:02d}" for label in range(10)]  # of five queries each, the others of four
    assert f"{20 - MAX_LABELS} smaller ones" in stdout
