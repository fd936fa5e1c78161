"""What was learnt of a click log: how often each position is examined, and what its clicks became."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mim_lightning.display.numbers import format_count, format_interval, format_number, format_percent
from mim_lightning.io.atomic import atomic_write

TRUSTED_AFTER_CLICK = 0.5  # lower ratios of click rates are those of shoppers who stop after a click


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """The ratio of the interval's ends."""
        return self.high / self.low if self.low > 0 else float("inf")


@dataclass(frozen=True)
class PositionRow:
    """One position: its rows in the log, and how often it is examined relative to the first."""

    position: int
    num_shown: int
    num_clicked: int
    examination: Estimate
    weight: float  # of a click, clipped

    @property
    def click_rate(self) -> float:
        return self.num_clicked / self.num_shown if self.num_shown else 0.0


@dataclass(frozen=True)
class ClickReport:
    """A click log, its positions, and the labels made of it.

    Attributes:
        path: of the table of impressions.
        num_rows: valid ones.
        source: of the examination: "estimated", "none" or the path of a table.
        positions: from the first.
        after_click: see `estimate_after_click`.
        counts: further numbers, by what they count.
    """

    path: str
    num_rows: int
    source: str
    positions: tuple[PositionRow, ...]
    after_click: Estimate | None
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def is_estimated(self) -> bool:
        return self.source == "estimated"

    def lines(self) -> Iterator[str]:
        """Yield in words what the table of positions does not say."""
        last = self.positions[-1]
        if self.is_estimated:
            ends = format_interval(last.examination.low, last.examination.high)
            yield (
                f"examination falls to {format_number(last.examination.value)} {ends} at position {last.position}, "
                "estimated from products that a query showed at several positions"
            )
        else:
            yield f"examination: {'every position alike' if self.source == 'none' else self.source}"
        yield ", ".join(format_count(number, noun) for noun, number in self.counts.items() if number)
        if self.after_click is None:
            yield "no product was shown below a click and without one: whether shoppers stop after a click is unknown"
        else:
            ends = format_interval(self.after_click.low, self.after_click.high)
            yield (
                f"below a click a product is clicked {format_number(self.after_click.value)} {ends} times as often as "
                "at the same position without one (1 if clicks do not depend on each other)"
            )

    def warnings(self) -> Iterator[str]:
        """Yield what speaks against the examinations."""
        if self.after_click is not None and self.after_click.high < TRUSTED_AFTER_CLICK:
            yield (
                "shoppers stop after a click, so how often a position is examined depends on what is above it: compare "
                "with data.source.examination=none on queries whose answers are known"
            )
        num_clipped = sum(row.num_clicked for row in self.positions if row.weight < 0.999 / row.examination.value)
        num_clicks = sum(row.num_clicked for row in self.positions)
        if 20 * num_clipped > num_clicks:
            yield (
                f"{format_percent(num_clipped, num_clicks)} of the clicks have the clipped weight; a lower "
                "data.source.min_examination debiases them more, with more noise"
            )

    def write_csv(self, path: Path) -> None:
        """Write a row a position."""
        columns = ("position", "shown", "clicked", "click_rate", "examination", "low", "high", "weight_of_click")
        with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for row in self.positions:
                found = row.examination
                numbers = row.click_rate, found.value, found.low, found.high, row.weight
                writer.writerow([row.position, row.num_shown, row.num_clicked, *(f"{value:.6g}" for value in numbers)])
