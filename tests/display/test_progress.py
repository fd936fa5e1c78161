"""Progress: the rate counts what this process did, lines come now and then, and nothing wraps at 80 columns."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mim_lightning.display.progress import ProgressMeter


def test_progress_lines_without_a_terminal() -> None:
    now = 0.0
    out = io.StringIO()
    with ProgressMeter(1_000, num_finished=500, console=Console(file=out, width=200), clock=lambda: now) as meter:
        assert "time left unknown" in meter.describe()
        now = 10.0
        meter.update(200, 4_000_000)
        assert meter.describe() == "700/1,500 rows, 20/s, 0.4 MB/s, 40 s left"
        assert out.getvalue() == ""  # a line every 30 s
        now = 31.0
        meter.update(310, 6_200_000)
        assert out.getvalue() == "810/1,500 rows, 10/s, 0.2 MB/s, 69 s left\n"
        now = 100.0
        meter.update(1_000, 20_000_000)
    assert out.getvalue().endswith("wrote 1,500 rows (500 before) in 2 min, 10/s, 0.2 MB/s\n")


def test_no_last_line_after_an_error_or_without_a_verb() -> None:
    out = io.StringIO()
    with pytest.raises(KeyError), ProgressMeter(1, console=Console(file=out)):
        raise KeyError
    with ProgressMeter(None, verb="", console=Console(file=out)) as meter:
        meter.update(1)
    assert out.getvalue() == ""


@pytest.mark.parametrize("total", [987_654_321, None])
def test_no_line_wraps_at_80_columns(total: int | None) -> None:
    now = 0.0
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    options = {"verb": "checked", "noun": "images", "label": "checking images", "clock": lambda: now}
    with ProgressMeter(total, 123_456, console=console, **options) as meter:  # type: ignore[arg-type]
        now = 7_500.0
        meter.update(98_765_432, 10**12)
        meter._bar.refresh()
        if total is not None:
            meter.update(total, 10**12)
    lines = console.file.getvalue().replace("\r", "\n").splitlines()  # type: ignore[attr-defined]
    assert any("images/s" in line and "…" not in line for line in lines)
    assert max(len(line.split("\x1b[2K")[-1]) for line in lines) <= 80
