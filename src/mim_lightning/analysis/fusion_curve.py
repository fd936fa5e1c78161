"""A fusion's curve as a table on the terminal, a CSV and a picture.

A FusionCurve comes in, lines and files go out; the tune_fusion door calls it.
"""

from __future__ import annotations

import csv
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mim_lightning.analysis.fusion_sweep import FusionCurve
from mim_lightning.display.text import plain


def print_curve(curve: FusionCurve) -> None:
    """Print the curve with a mark at the best share, and what the choice is worth."""
    first, second = curve.parts
    title = f"{curve.direction}, {curve.metric} by the share of {first} in '{curve.fusion}'; the rest is {second}"
    table = Table(
        title=escape(plain(title)), title_justify="left", box=SIMPLE, caption="shares, 0 to 1; intervals 95 %"
    )
    for column in ("share", curve.metric, "interval"):
        table.add_column(Text(plain(column)), justify="right")
    table.add_column("")
    for share, value, (low, high) in zip(curve.shares, curve.values, curve.intervals, strict=True):
        mark = "best" if share == curve.best_share else ""
        table.add_row(f"{share:.2f}", f"{value:.3f}", f"{low:.3f} - {high:.3f}", mark)
    Console().print(table)
    print(_describe(curve))


def write_curve(curve: FusionCurve, folder: Path) -> list[Path]:
    """Write `fusion.csv` and `fusion.png` into a folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table, picture = folder / "fusion.csv", folder / "fusion.png"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("share", curve.metric, "low", "high"))
        for share, value, (low, high) in zip(curve.shares, curve.values, curve.intervals, strict=True):
            writer.writerow((share, value, low, high))
    _draw(curve, picture)
    return [table, picture]


def _describe(curve: FusionCurve) -> str:
    chosen = curve.chosen
    return (
        f"trained share {curve.trained_share:.2f}: {curve.trained_value:.3f}; a share chosen on half of the products "
        f"changes that by {chosen.difference:+.3f} [{chosen.low:+.3f}, {chosen.high:+.3f}] on the other half "
        f"(p {chosen.p_value:.3f}, {chosen.num_queries} queries, {chosen.num_units} products)"
    )


def _draw(curve: FusionCurve, path: Path) -> None:
    from mim_lightning.display.style import BLUE, ORANGE, new_figure, save

    figure, axes = new_figure(width=6.4, height=4.0)
    lows, highs = zip(*curve.intervals, strict=True)
    axes.fill_between(curve.shares, lows, highs, color=BLUE, alpha=0.15, label="95 % interval", linewidth=0)
    axes.plot(curve.shares, curve.values, color=BLUE, marker="o", markersize=3)
    axes.axvline(curve.trained_share, color=ORANGE, linestyle="--", label="trained weights")
    best = curve.shares.index(curve.best_share)
    axes.plot([curve.best_share], [curve.values[best]], marker="*", markersize=13, color=ORANGE, linestyle="")
    axes.set_xlabel(f"share of {curve.parts[0]} (0: {curve.parts[1]} alone)")
    axes.set_ylabel(curve.metric)
    axes.set_title(f"{curve.direction}: weights of '{curve.fusion}'")
    axes.legend()
    save(figure, path)
