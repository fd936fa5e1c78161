"""What vectors of several sizes find, over the bytes that they take, as a drawing and the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from mim_lightning.analysis.index_curve import METRIC, CurvePoint
from mim_lightning.display.style import LINES
from mim_lightning.metric_names import WIDTH

SIZE, MARGIN = (560, 280), 44  # units of the SVG
NUM_TICKS = 4
FLOAT32 = 4  # bytes
NAN, ENDS = float("nan"), ("low", "high")


@dataclass(frozen=True)
class SizeRow:
    """What vectors of one size find; what an index of them costs is nan where none was measured."""

    line: str
    width: int
    num_bytes: int  # of a product in memory
    value: float
    low: float
    high: float
    difference: float = NAN
    difference_low: float = NAN
    difference_high: float = NAN
    queries_per_second: float = NAN


@dataclass(frozen=True)
class SizeLine:
    """One line with its interval, in units of the drawing."""

    name: str
    color: str
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class SizeFigure:
    """Lines, their rows, and the labels of both axes."""

    rows: tuple[SizeRow, ...]
    lines: tuple[SizeLine, ...]
    places: tuple[tuple[float, str], ...]  # x and label
    values: tuple[tuple[float, str], ...]  # y and label
    caption: str
    has_costs: bool
    metric: str = METRIC
    size: tuple[int, int] = field(default=SIZE)
    margin: int = MARGIN

    @classmethod
    def of(cls, direction: str, points: Sequence[CurvePoint]) -> SizeFigure:
        """Return the figure of indexes of several sizes."""
        rows = [
            SizeRow(
                *(f"{point.precision}, {point.kind}", point.width, round(point.memory_bytes)),
                *(point.ndcg, point.low, point.high),
                *(point.difference, point.difference_low, point.difference_high, point.queries_per_second),
            )
            for point in points
        ]
        return cls._draw(rows, f"{direction}, answered by indexes; less than exact search of whole vectors, paired.")

    @classmethod
    def of_widths(cls, results: Mapping[str, float], full_width: int | None = None) -> SizeFigure | None:
        """Return the figure of a run that was evaluated at several widths; None if it was not."""
        keys = dict[str, tuple[str, int]]()  # of results -> direction and width
        for key in results:
            direction, _, width = key.removeprefix("val/").partition(f"/{METRIC}/{WIDTH}")
            if key.startswith("val/") and width.isdigit():
                keys[key] = direction, int(width)
                if full_width is not None:
                    keys[f"val/{direction}/{METRIC}"] = direction, full_width
        if not keys:
            return None
        rows = [
            SizeRow(name, width, FLOAT32 * width, results[key], *(results.get(f"{key}/{end}", NAN) for end in ENDS))
            for key, (name, width) in keys.items()
            if key in results
        ]
        return cls._draw(rows, "Vectors cut to their first numbers, float32, ranked exactly.")

    @classmethod
    def _draw(cls, rows: Iterable[SizeRow], caption: str) -> SizeFigure:
        ordered = tuple(sorted(rows, key=lambda row: (row.line, row.num_bytes)))
        sizes = sorted({row.num_bytes for row in ordered})
        ends = [end for row in ordered for end in (row.value, row.low, row.high) if not math.isnan(end)]
        low, high = min(ends), max(ends)
        first, last = math.log2(max(1, sizes[0])), math.log2(max(1, sizes[-1]))

        def x(num_bytes: int) -> float:
            place = (math.log2(max(1, num_bytes)) - first) / (last - first or 1)
            return round(MARGIN + (SIZE[0] - 2 * MARGIN) * place, 1)

        def y(value: float) -> float:
            return round(SIZE[1] - MARGIN - (SIZE[1] - 2 * MARGIN) * (value - low) / (high - low or 1), 1)

        lines = []
        for idx, (name, group) in enumerate(groupby(ordered, lambda row: row.line)):
            found = list(group)
            upper = [(x(row.num_bytes), y(row.high)) for row in found if not math.isnan(row.high)]
            lower = [(x(row.num_bytes), y(row.low)) for row in found if not math.isnan(row.low)]
            points = tuple((x(row.num_bytes), y(row.value)) for row in found)
            lines.append(SizeLine(name, LINES[idx % len(LINES)], points, (*upper, *reversed(lower))))
        ticks = [low + (high - low) * tick / NUM_TICKS for tick in range(NUM_TICKS + 1)]
        return cls(
            rows=ordered,
            lines=tuple(lines),
            places=tuple((x(size), f"{size:,}") for size in sizes),
            values=tuple((y(value), f"{value:.2f}") for value in ticks),
            caption=caption,
            has_costs=not all(math.isnan(row.queries_per_second) for row in ordered),
        )
