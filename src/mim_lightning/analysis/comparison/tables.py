"""A comparison as text: a table over all queries, one by segment, and the queries that changed most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mim_lightning.analysis.comparison.comparison import Comparison
from mim_lightning.analysis.comparison.differences import MIN_UNITS, Difference, QueryChange
from mim_lightning.display.numbers import (
    format_difference,
    format_interval,
    format_number,
    format_p_value,
    format_ranks,
    format_relative,
)
from mim_lightning.display.text import plain

MAX_LABELS = 12  # of one segment; the page has all
MAX_TEXT = 40  # characters of a query text
MAX_LABEL = 120  # of any other cell
MIN_WIDTH = 110  # of a terminal; in a narrower one some cells have two lines
OVERALL_NOTE = (
    "means over queries and runs; 95 % intervals by bootstrap over products and runs, p by randomization (signs "
    "flipped by product); * the interval excludes zero"
)
SEGMENT_NOTE = (
    "Holm p: corrected for the number of segments in this table; "
    f"* the interval excludes zero and Holm p < 0.05; - fewer than {MIN_UNITS} products"
)


class _Table(Table):
    """A table whose columns come in groups: in a narrow terminal the cells of a group are stacked."""

    def __init__(self, is_wide: bool = True, **options: Any) -> None:
        style: dict[str, Any] = {
            "box": SIMPLE,
            "title_justify": "left",
            "caption_justify": "left",
            "padding": (0, 1, 0, 0),
        }
        super().__init__(**style, **options)
        self.is_wide = is_wide

    def add_text_columns(self, *groups: Sequence[str]) -> None:
        for name in self._cells(groups):
            self.add_column(name)

    def add_number_columns(self, *groups: Sequence[str]) -> None:
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
    # without a terminal there is no width to fit: the tables keep all their columns
    console = console if console.is_terminal else Console(width=200)
    is_wide = console.width >= MIN_WIDTH
    baseline = comparison.groups[0]
    console.print()
    for group in comparison.groups:
        role = "baseline" if group is baseline else "group"
        text = f"[bold]{escape(plain(group.label))}[/]: {escape(plain(group.describe(), 1_000))}"
        console.print(f"{role:>8}  {text}", highlight=False)
    console.print(_overall_table(comparison.overall, is_wide))
    metric = next((row.metric for row in comparison.overall), "")  # of several, the page shows the others
    shown = [row for row in comparison.by_segment if row.direction in segment_directions and row.metric == metric]
    for key, rows in groupby(shown, lambda row: (row.direction, row.metric, row.group)):
        title = " · ".join((*key[:2], f"{key[2]} against {baseline.label}"))
        console.print(_segment_table(title, list(rows), is_wide))
    shown_changes = [c for c in (*comparison.gained, *comparison.lost) if c.direction in segment_directions]
    shown_changes.sort(key=lambda change: (change.direction, change.group))  # stable: gained first, largest first
    for (direction, label), changes in groupby(shown_changes, lambda change: (change.direction, change.group)):
        console.print(_change_table(f"{direction} · {label} against {baseline.label}", changes))
    for note in comparison.notes:
        console.print(f"note: {plain(note, 1_000)}", style="yellow", highlight=False, markup=False)


def _overall_table(rows: Sequence[Difference], is_wide: bool) -> Table:
    table = _Table(is_wide, caption=OVERALL_NOTE)
    table.add_text_columns(["direction", "metric"], ["group"])
    table.add_number_columns(
        ["baseline", "group"], ["difference", "95 % interval"], ["relative", "p"], ["queries", "products"]
    )
    for row in rows:
        table.add(
            [row.direction, row.metric],
            [row.group],
            [format_number(row.baseline_mean), format_number(row.group_mean)],
            _difference(row),
            [format_relative(row.relative), format_p_value(row.p_value)],
            [str(row.num_queries), str(row.num_products)],
            style=_style(row),
        )
    return table


def _segment_table(title: str, rows: Sequence[Difference], is_wide: bool) -> Table:
    table = _Table(is_wide, title=escape(plain(title)), caption=SEGMENT_NOTE)
    table.add_text_columns(["segment"], ["label"])
    table.add_number_columns(["queries"], ["baseline", "group"], ["difference", "95 % interval"], ["p", "Holm p"])
    for segment, group in groupby(rows, lambda row: row.segment):
        labels = list(group)
        largest = sorted(labels, key=lambda row: -row.num_queries)[:MAX_LABELS]
        for row in (row for row in labels if row in largest):
            table.add(
                [segment],
                [row.label],
                [str(row.num_queries)],
                [format_number(row.baseline_mean), format_number(row.group_mean)],
                _difference(row),
                [format_p_value(row.p_value), format_p_value(row.holm_p)],
                style=_style(row),
            )
        if len(labels) > MAX_LABELS:
            table.add([segment], [f"{len(labels) - MAX_LABELS} smaller ones: see the page"], style="dim")
        table.add_section()
    return table


def _change_table(title: str, changes: Iterable[QueryChange]) -> Table:
    table = _Table(
        title=escape(f"{plain(title)}: the queries that changed most"),
        caption="rank of the first relevant product, run by run; -: rank > depth",
    )
    table.add_text_columns(*([name] for name in ("", "query", "query text", "product", "rank", "segments")))
    for change in changes:
        text = plain(change.text, MAX_TEXT)
        ranks = f"{format_ranks(change.before.ranks)} -> {format_ranks(change.after.ranks)}"
        cells = ("gained" if change.gain > 0 else "lost", change.query_id, text, change.unit_id, ranks)
        table.add(*([word] for word in cells), [", ".join(change.segments.values())])
    return table


def _difference(row: Difference) -> list[str]:
    ends = format_interval(row.low, row.high, format_difference)
    # a space in place of the mark keeps the numbers aligned
    return [format_difference(row.difference), f"{ends} {'*' if row.is_clear else ' '}"]


def _style(row: Difference) -> str:
    return "" if not row.is_clear else "bold blue" if row.is_better else "bold red"
