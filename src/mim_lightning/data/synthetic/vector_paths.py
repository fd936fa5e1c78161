"""Vector paths on a square of 100 by 100, and their anti-aliased masks of any side length.

Points have x to the right and y down; they are given as numbers or, as in SVG, as a text "x,y x,y ...".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]

SQUARE = 100  # side in coordinates
SUPERSAMPLING = 3  # masks are drawn this many times larger, then reduced
STEPS_PER_SEGMENT = 10  # straight pieces between two points of a curve
STEPS_PER_ARC = 10  # straight pieces of a quarter circle


@dataclass(frozen=True)
class Path:
    """A filled area, or, with a `width`, a stroke with round ends."""

    points: tuple[Point, ...]
    width: float | None = None

    def draw(self, pen: ImageDraw.ImageDraw, scale: float) -> None:
        points = [(x * scale, y * scale) for x, y in self.points]
        if self.width is None:
            pen.polygon(points, fill=255)
            return
        width = self.width * scale
        pen.line(points, fill=255, width=max(1, round(width)), joint="curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)


def poly(points: str) -> Path:
    """An area with straight edges."""
    return Path(_read_points(points))


def blob(points: str) -> Path:
    """An area with a smooth edge through all points; a point given twice is a corner."""
    knots = _read_points(points)
    return Path(_smooth(knots[-1:] + knots + knots[:2]))


def line(width: float, points: str) -> Path:
    """A stroke with straight pieces."""
    return Path(_read_points(points), width)


def curve(width: float, points: str) -> Path:
    """A smooth stroke through all points."""
    knots = _read_points(points)
    return Path(_smooth(knots[:1] + knots + knots[-1:]), width)


def _read_points(text: str) -> tuple[Point, ...]:
    pairs = (point.split(",") for point in text.split())
    return tuple((float(x), float(y)) for x, y in pairs)


def oval(left: float, top: float, right: float, bottom: float) -> Path:
    """An ellipse that fills the given rectangle."""
    return box(left, top, right, bottom, (right - left) / 2, (bottom - top) / 2)


def box(
    left: float, top: float, right: float, bottom: float, radius: float = 0.0, radius_y: float | None = None
) -> Path:
    """A rectangle with rounded corners."""
    rx, ry = radius, radius if radius_y is None else radius_y
    centers = (
        (right - rx, bottom - ry),
        (left + rx, bottom - ry),
        (left + rx, top + ry),
        (right - rx, top + ry),
    )
    points = []
    for quarter, (x, y) in enumerate(centers):
        for step in range(STEPS_PER_ARC + 1):
            angle = (quarter + step / STEPS_PER_ARC) * math.pi / 2
            points.append((x + rx * math.cos(angle), y + ry * math.sin(angle)))
    return Path(tuple(points))


def rim(width: float, area: Path) -> Path:
    """The edge of an area, as a closed stroke."""
    return Path(area.points + area.points[:2], width)


def mirror(path: Path) -> Path:
    """The same path on the other side of the vertical middle."""
    return Path(tuple((SQUARE - x, y) for x, y in path.points), path.width)


def _smooth(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """Return a Catmull-Rom curve from the second point to the last but one, through every point between."""
    knots = np.array(points)
    t = np.linspace(0, 1, STEPS_PER_SEGMENT, endpoint=False)[:, None]
    pieces = []
    for before, start, end, after in zip(knots, knots[1:], knots[2:], knots[3:], strict=False):
        if np.array_equal(start, end):  # a corner: the curve has no length, and a slope would draw a loop
            continue
        slope_in, slope_out = (end - before) / 2, (after - start) / 2
        cubic = 2 * (start - end) + slope_in + slope_out
        square = 3 * (end - start) - 2 * slope_in - slope_out
        pieces.append(start + t * (slope_in + t * (square + t * cubic)))
    pieces.append(knots[-2:-1])
    return tuple((float(x), float(y)) for x, y in np.concatenate(pieces))


def draw_mask(paths: Sequence[Path], side: int) -> Image.Image:
    """Draw the union of the paths as a (side, side) gray image: 255 inside, 0 outside."""
    mask = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING), 0)
    pen = ImageDraw.Draw(mask)
    for path in paths:
        path.draw(pen, side * SUPERSAMPLING / SQUARE)
    return mask.reduce(SUPERSAMPLING)
