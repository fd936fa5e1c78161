"""The examination of each position as a drawing: with intervals, beside the click rates that it explains in part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mim_lightning.analysis.html.render import write_page
from mim_lightning.data.manifest.click_report import ClickReport

WIDTH, HEIGHT, MARGIN = 560, 260, 40  # units of the SVG
NUM_TICKS = 4
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class PositionFigure:
    """Points and ticks in units of the drawing.

    Attributes:
        whiskers: x, and y of the interval's ends; empty if the examination was not estimated.
        click_rates: relative to the first position's.
        rows, columns: places and labels of the ticks.
    """

    examinations: Points
    whiskers: tuple[tuple[float, float, float], ...]
    click_rates: Points
    rows: tuple[tuple[float, str], ...]
    columns: tuple[tuple[float, str], ...]
    size: tuple[int, int] = (WIDTH, HEIGHT)

    @classmethod
    def of(cls, clicks: ClickReport) -> PositionFigure:
        positions, first = clicks.positions, clicks.positions[0].click_rate
        rates = [row.click_rate / first for row in positions] if first else []
        top = max(1.0, *(row.examination.high for row in positions), *rates)

        def x(idx: int) -> float:
            return round(MARGIN + (WIDTH - 2 * MARGIN) * idx / max(1, len(positions) - 1), 1)

        def y(value: float) -> float:
            return round(HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / top, 1)

        def points(values: Sequence[float]) -> Points:
            return tuple((x(idx), y(value)) for idx, value in enumerate(values))

        ends = [(x(idx), y(row.examination.low), y(row.examination.high)) for idx, row in enumerate(positions)]
        ticks = [top * tick / NUM_TICKS for tick in range(NUM_TICKS + 1)]
        return cls(
            points([row.examination.value for row in positions]),
            tuple(ends) if clicks.is_estimated else (),
            points(rates),
            tuple((y(value), f"{value:.2g}") for value in ticks),
            tuple((x(idx), str(row.position)) for idx, row in enumerate(positions)),
        )


def write_position_figure(clicks: ClickReport, path: Path) -> None:
    """Write the drawing as an SVG file."""
    write_page(path, "positions.svg.j2", figure=PositionFigure.of(clicks))
