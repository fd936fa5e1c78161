"""Predicted probabilities against observed frequencies as a drawing (reliability diagram), a line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mim_lightning.analysis.html.render import write_page

SIDE, MARGIN = 320, 44  # units of the SVG
NUM_TICKS = 5
COLORS = ("#2b6cb0", "#b7791f", "#2f855a")  # of the lines


@dataclass(frozen=True)
class Line:
    """One line: its name and color, and points in units of the drawing."""

    name: str
    color: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ReliabilityFigure:
    """Lines, and the places and labels of the ticks, which both axes share."""

    lines: tuple[Line, ...]
    ticks: tuple[tuple[float, float, str], ...]  # x, y, label
    side: int = SIDE
    margin: int = MARGIN

    @classmethod
    def of(cls, bins: Mapping[str, Sequence[tuple[float, float, int]]]) -> ReliabilityFigure:
        def x(value: float) -> float:
            return round(MARGIN + (SIDE - 2 * MARGIN) * value, 1)

        def y(value: float) -> float:
            return round(SIDE - MARGIN - (SIDE - 2 * MARGIN) * value, 1)

        lines = tuple(
            Line(name, color, tuple((x(predicted), y(observed)) for predicted, observed, _ in points))
            for (name, points), color in zip(bins.items(), COLORS, strict=False)
        )
        values = [tick / NUM_TICKS for tick in range(NUM_TICKS + 1)]
        return cls(lines, tuple((x(value), y(value), f"{value:g}") for value in values))


def write_reliability(path: Path, bins: Mapping[str, Sequence[tuple[float, float, int]]]) -> None:
    """Write the drawing as an SVG file.

    Args:
        bins: by name of the line, mean probability, frequency and number of each bin.
    """
    write_page(path, "reliability.svg.j2", figure=ReliabilityFigure.of(bins))
