"""A comparison on the terminal: one table over all queries, one by segment, the queries that changed most.

A Comparison comes in, lines go out; the compare door calls it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mim_lightning.analysis.comparison.changes import Change
from mim_lightning.analysis.comparison.comparison import Comparison
from mim_lightning.analysis.comparison.differences import MIN_UNITS, Difference
from mim_lightning.display.numbers import (
    format_difference,
    format_interval,
    format_number,
    format_p_value,
    format_ranks,
    format_relative,
)
from mim_lightning.display.text import plain

MAX_LABELS = 12  # of one segment on the terminal; the page has all
MAX_TEXT = 40  # characters of a query's words
MAX_LABEL = 120  # of any other cell
WIDE = 110  # characters of a terminal; in a narrower one some cells have two lines
OVERALL_NOTE = (
    "means over queries and runs; 95 % intervals by bootstrap over products and runs, p by randomisation (signs "
    "flipped by product); * the interval excludes zero"
)
SEGMENT_NOTE = (
    "Holm p: corrected for all segments of this table, so that a surprise among many is not taken for a finding; "
    f"* interval and Holm p agree on a difference; - fewer than {MIN_UNITS} products"
)


class _Table(Table):
    """Columns in groups, whose cells stand below each other in a narrow terminal."""

    def __init__(self, is_wide: bool = True, **options: Any) -> None:
        look: dict[str, Any] = {
            "box": SIMPLE,
            "title_justify": "left",
            "caption_justify": "left",
            "padding": (0, 1, 0, 0),
        }
        super().__init__(**look, **options)
        self.is_wide = is_wide

    def add_words(self, *groups: Sequence[str]) -> None:
        for name in self._cells(groups):
            self.add_column(name)

    def add_numbers(self, *groups: Sequence[str]) -> None:
        for name in self._cells(groups):
            self.add_column(name, justify="right", no_wrap=True)

    def add(self, *groups: Sequence[str], style: str = "") -> None:
        self.add_row(*self._cells(groups), style=style)

    def _cells(self, groups: Sequence[Sequence[str]]) -> list[Text]:
        shown = [[plain(word, MAX_LABEL) for word in group] for group in groups]
        cells = chain.from_iterable(shown) if self.is_wide else map("\n".join, shown)
        return [Text(cell) for cell in cells]


def print_comparison(comparison: Comparison, segment_directions: Sequence[str], console: Console | None = None) -> None:
    """Print all directions over all queries, and those named in `segment_directions` by segment."""
    console = console or Console()
    # a pipe has no width of its own: the tables keep all their columns there
    console = console if console.is_terminal else Console(width=200)
    is_wide = console.width >= WIDE
    baseline, *others = comparison.arms
    console.print()
    for arm, role in ((baseline, "baseline"), *((arm, "arm") for arm in others)):
        console.print(
            f"{role:>8}  [bold]{escape(plain(arm.label))}[/]: {escape(plain(arm.describe(), 1_000))}", highlight=False
        )
    console.print(_overall(comparison.overall, is_wide))
    metric = next((row.metric for row in comparison.overall), "")  # of several, the page shows the others
    shown = [row for row in comparison.by_segment if row.direction in segment_directions and row.metric == metric]
    for key, rows in groupby(shown, lambda row: (row.direction, row.metric, row.arm)):
        console.print(_by_segment(" · ".join((*key[:2], f"{key[2]} against {baseline.label}")), list(rows), is_wide))
    shown_changes = [c for c in (*comparison.gained, *comparison.lost) if c.direction in segment_directions]
    shown_changes.sort(key=lambda change: (change.direction, change.arm))  # stable: gained first, largest first
    for change_key, changes in groupby(shown_changes, lambda change: (change.direction, change.arm)):
        console.print(_changes(" · ".join((change_key[0], f"{change_key[1]} against {baseline.label}")), changes))
    for note in comparison.notes:
        console.print(f"note: {plain(note, 1_000)}", style="yellow", highlight=False, markup=False)


def _overall(rows: Sequence[Difference], is_wide: bool) -> Table:
    table = _Table(is_wide, caption=OVERALL_NOTE)
    table.add_words(["direction", "metric"], ["arm"])
    table.add_numbers(["baseline", "arm"], ["difference", "95 % interval"], ["relative", "p"], ["queries", "products"])
    for row in rows:
        table.add(
            [row.direction, row.metric],
            [row.arm],
            [format_number(row.baseline_mean), format_number(row.arm_mean)],
            _difference(row),
            [format_relative(row.relative), format_p_value(row.p_value)],
            [str(row.num_queries), str(row.num_products)],
            style=_style(row),
        )
    return table


def _by_segment(title: str, rows: Sequence[Difference], is_wide: bool) -> Table:
    table = _Table(is_wide, title=escape(plain(title)), caption=SEGMENT_NOTE)
    table.add_words(["segment"], ["label"])
    table.add_numbers(["queries"], ["baseline", "arm"], ["difference", "95 % interval"], ["p", "Holm p"])
    for segment, group in groupby(rows, lambda row: row.segment):
        labels = list(group)
        largest = sorted(labels, key=lambda row: -row.num_queries)[:MAX_LABELS]
        for row in (row for row in labels if row in largest):
            table.add(
                [segment],
                [row.label],
                [str(row.num_queries)],
                [format_number(row.baseline_mean), format_number(row.arm_mean)],
                _difference(row),
                [format_p_value(row.p_value), format_p_value(row.holm_p)],
                style=_style(row),
            )
        if len(labels) > MAX_LABELS:
            table.add([segment], [f"{len(labels) - MAX_LABELS} smaller ones: on the page"], style="dim")
        table.add_section()
    return table


def _changes(title: str, changes: Iterable[Change]) -> Table:
    table = _Table(
        title=escape(f"{plain(title)}: the queries that changed most"),
        caption="rank of the first right product, run by run; - beyond the depth",
    )
    table.add_words(*([name] for name in ("", "query", "words", "product", "rank", "segments")))
    for change in changes:
        text = plain(change.text, MAX_TEXT)
        ranks = f"{format_ranks(change.before.ranks)} -> {format_ranks(change.after.ranks)}"
        told = ("gained" if change.gain > 0 else "lost", change.query_id, text, change.unit_id, ranks)
        table.add(*([word] for word in told), [", ".join(change.segments.values())])
    return table


def _difference(row: Difference) -> list[str]:
    ends = format_interval(row.low, row.high, format_difference)
    # the mark has a place of its own, or the numbers would not stand below each other
    return [format_difference(row.difference), f"{ends} {'*' if row.is_clear else ' '}"]


def _style(row: Difference) -> str:
    return "" if not row.is_clear else "bold blue" if row.is_better else "bold red"
