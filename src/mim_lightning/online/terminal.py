"""A report on the terminal: warnings first, then arms, comparisons, positions and the size that is needed.

An ExperimentReport or a SampleSize comes in, lines go out; the report door calls it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.box import HEAVY, SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from mim_lightning.display.text import plain
from mim_lightning.online.counts import PositionCounts
from mim_lightning.online.lift import Interval
from mim_lightning.online.plan import Plan
from mim_lightning.online.sample_size import SampleSize
from mim_lightning.online.summary import ExperimentReport

MAX_WORDS = 1_000  # characters of a name or a warning
MAX_POSITIONS = 10  # on the terminal; JSON has all
COMPARISON_NOTE = (
    "intervals and p of the impressions respect that a user's impressions are alike (delta method over users); Holm p: "
    "corrected for the number of arms; always valid: holds at every look, however many there were"
)
POSITION_NOTE = (
    "position bias: what stands higher is looked at more, so a lower rate further down does not say that those "
    "products fit worse; compare arms at the same position, never positions"
)


def print_report(report: ExperimentReport, console: Console | None = None) -> None:
    """Print a report; the gravest doubts stand in a frame above all numbers."""
    console = console or Console()
    # a pipe has no width of its own: the tables keep all their columns there
    console = console if console.is_terminal else Console(width=200)
    console.print(f"\n[bold]{escape(plain(report.experiment, MAX_WORDS))}[/]  {_span(report)}", highlight=False)
    for position, warning in enumerate(report.warnings):
        is_grave = position == 0 and report.sample_ratio.is_mismatch  # which is the first of the warnings
        panel = Panel(escape(plain(warning, MAX_WORDS)), box=HEAVY, style="bold red")
        console.print(
            panel if is_grave else f"[yellow]warning: {escape(plain(warning, MAX_WORDS))}[/]", highlight=False
        )
    console.print(_arms(report))
    if report.comparisons:
        console.print(_comparisons(report))
    if report.positions:
        console.print(_positions(report.positions))
    if report.needed is not None:
        print_size(report.needed, report.plan, f"at the rate of '{report.control}'", console)


def print_size(size: SampleSize, plan: Plan, base: str, console: Console | None = None) -> None:
    (console or Console(width=200)).print(
        f"to find a lift of {_percent(plan.lift)} {base} with power {plan.power:g} at alpha {plan.alpha:g}: "
        f"{size.num_users:,} users, {size.num_impressions:,} impressions, in each arm",
        highlight=False,
        markup=False,
    )


def _arms(report: ExperimentReport) -> Table:
    table = _table("arm", numbers=("users", "impressions", "clicked", "CTR", _level(report.plan), "users who clicked"))
    for name in ("impressions a user", "design effect", "empty", "ms"):
        table.add_column(name, justify="right")
    for arm in report.arms:
        table.add_row(
            escape(plain(arm.arm, MAX_WORDS)) + (" (control)" if arm.arm == report.control else ""),
            f"{arm.num_users:,}",
            f"{arm.num_impressions:,}",
            f"{arm.num_clicked:,}",
            _rate(arm.click_rate),
            _ends(arm.click_rate_interval, _rate),
            _rate(arm.user_rate),
            f"{arm.impressions_per_user:.2f}",
            "-" if math.isnan(arm.design_effect) else f"{arm.design_effect:.2f}",
            f"{arm.num_empty:,}",
            f"{arm.mean_latency_ms:.0f}",
        )
    return table


def _comparisons(report: ExperimentReport) -> Table:
    level = _level(report.plan)
    table = _table("CTR", "arm", numbers=("difference", level, "lift", level, "p", "Holm p"), caption=COMPARISON_NOTE)
    for name in (f"lift, {level}, always valid", "p, always valid"):
        table.add_column(name, justify="right")
    for row in report.comparisons:
        table.add_row(
            row.measure,
            escape(plain(row.arm, MAX_WORDS)),
            _signed(row.difference),
            _ends(row.difference_interval, _signed),
            _percent(row.lift),
            _ends(row.lift_interval, _percent),
            _p(row.p_value),
            _p(row.holm_p_value),
            _ends(row.always_valid_interval, _percent),
            _p(row.always_valid_p_value),
        )
    return table


def _positions(positions: Sequence[PositionCounts]) -> Table:
    numbers = sorted({row.position for row in positions})[:MAX_POSITIONS]
    table = _table("CTR by position", numbers=tuple(map(str, numbers)), caption=POSITION_NOTE)
    for arm in dict.fromkeys(row.arm for row in positions):
        rates = {row.position: row.click_rate for row in positions if row.arm == arm}
        table.add_row(
            escape(plain(arm, MAX_WORDS)), *(_rate(rates[number]) if number in rates else "-" for number in numbers)
        )
    return table


def _table(*words: str, numbers: Sequence[str], caption: str | None = None) -> Table:
    table = Table(box=SIMPLE, caption=caption, caption_justify="left", padding=(0, 1, 0, 0))
    for name in words:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _span(report: ExperimentReport) -> str:
    if report.first is None or report.last is None:
        return ""
    return f"{report.first:%Y-%m-%d %H:%M} to {report.last:%Y-%m-%d %H:%M} UTC"


def _level(plan: Plan) -> str:
    return f"{100 * (1 - plan.alpha):g} % interval"


def _rate(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.4f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:+.2f} %"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _ends(interval: Interval, write: Callable[[float], str]) -> str:
    return "-" if math.isnan(interval.low) else f"[{write(interval.low)}, {write(interval.high)}]"
