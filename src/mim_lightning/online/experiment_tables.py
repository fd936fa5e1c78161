"""A report of an experiment as text: warnings, arms, comparisons, positions and the sample size that is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.box import HEAVY, SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from mim_lightning.display.numbers import format_difference, format_interval, format_number, format_p_value
from mim_lightning.display.text import plain
from mim_lightning.online.aggregates import PositionCounts
from mim_lightning.online.estimates import Interval
from mim_lightning.online.experiment_report import ExperimentReport
from mim_lightning.online.power import Plan, SampleSize

MAX_TEXT = 1_000  # characters of a name or a warning
MAX_POSITIONS = 10  # as text; JSON has all
COMPARISON_NOTE = (
    "Intervals and p account for the correlation of a user's impressions (delta method over users). Holm p: corrected "
    "for the number of arms. Always valid: holds at every look, however many there were."
)
POSITION_NOTE = (
    "Position bias: users look at the top first, so a lower rate further down does not mean that those products fit "
    "worse. Compare arms at the same position, never positions."
)


def print_report(report: ExperimentReport, console: Console | None = None) -> None:
    """Print a report; a sample ratio mismatch is framed above all numbers."""
    console = console or Console()
    # without a terminal there is no width to fit: the tables keep all their columns
    console = console if console.is_terminal else Console(width=200)
    console.print(f"\n[bold]{_text(report.experiment)}[/]  {_span(report)}", highlight=False)
    for idx, warning in enumerate(report.warnings):
        is_mismatch = idx == 0 and report.sample_ratio.is_mismatch
        frame = Panel(_text(warning), box=HEAVY, style="bold red")
        console.print(frame if is_mismatch else f"[yellow]warning: {_text(warning)}[/]", highlight=False)
    for table in (*_arm_tables(report), *_comparison_tables(report)):
        console.print(table)
    if report.comparisons:
        console.print(COMPARISON_NOTE, highlight=False)
    if report.positions:
        console.print(_position_table(report.positions))
        console.print(POSITION_NOTE, highlight=False)
    if report.needed is not None:
        print_size(report.needed, report.plan, f"at the rate of '{report.control}'", console)


def print_size(size: SampleSize, plan: Plan, base: str, console: Console | None = None) -> None:
    (console or Console(width=200)).print(
        f"to find a lift of {100 * plan.lift:+.2f} % {base} with power {plan.power:g} at alpha {plan.alpha:g}: "
        f"{size.num_users:,} users, {size.num_impressions:,} impressions, in each arm",
        highlight=False,
        markup=False,
    )


def _arm_tables(report: ExperimentReport) -> list[Table]:
    counts = _table("arm", numbers=("users", "impressions", "clicked", "empty", "latency, ms"))
    rates = _table(
        "arm",
        numbers=("CTR, %", _level(report.plan), "users who\nclicked, %", "impressions\na user", "design\neffect"),
    )
    for arm in report.arms:
        name = _text(arm.arm) + (" (control)" if arm.arm == report.control else "")
        numbers = (arm.num_users, arm.num_impressions, arm.num_clicked, arm.num_empty)
        counts.add_row(name, *(f"{number:,}" for number in numbers), f"{arm.mean_latency_ms:.0f}")
        rates.add_row(
            name,
            _percent(arm.click_rate),
            _interval(arm.click_rate_interval, _percent),
            _percent(arm.user_rate),
            f"{arm.impressions_per_user:.2f}",
            "-" if math.isnan(arm.design_effect) else f"{arm.design_effect:.2f}",
        )
    return [counts, rates]


def _comparison_tables(report: ExperimentReport) -> list[Table]:
    if not report.comparisons:
        return []
    level = _level(report.plan)
    effects = _table("CTR per", "arm", numbers=("difference,\n% points", level, "lift, %", level))
    tests = _table("CTR per", "arm", numbers=("p", "Holm p", f"lift, %, {level},\nalways valid", "p,\nalways valid"))
    for row in report.comparisons:
        names = row.measure.removeprefix("per "), _text(row.arm)
        effects.add_row(
            *names,
            _percent_difference(row.difference),
            _interval(row.difference_interval, _percent_difference),
            _percent_difference(row.lift),
            _interval(row.lift_interval, _percent_difference),
        )
        tests.add_row(
            *names,
            format_p_value(row.p_value),
            format_p_value(row.holm_p_value),
            _interval(row.always_valid_interval, _percent_difference),
            format_p_value(row.always_valid_p_value),
        )
    return [effects, tests]


def _position_table(positions: Sequence[PositionCounts]) -> Table:
    numbers = sorted({row.position for row in positions})[:MAX_POSITIONS]
    table = _table("CTR by\nposition, %", numbers=tuple(f"\n{number}" for number in numbers))
    for arm in dict.fromkeys(row.arm for row in positions):
        rates = {row.position: row.click_rate for row in positions if row.arm == arm}
        table.add_row(_text(arm), *(_percent(rates[number]) if number in rates else "-" for number in numbers))
    return table


def _table(*labels: str, numbers: Sequence[str]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in labels:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _text(text: str) -> str:
    return escape(plain(text, MAX_TEXT))


def _span(report: ExperimentReport) -> str:
    if report.first is None or report.last is None:
        return ""
    return f"{report.first:%Y-%m-%d %H:%M} to {report.last:%Y-%m-%d %H:%M} UTC"


def _level(plan: Plan) -> str:
    return f"{100 * (1 - plan.alpha):g} % interval"


def _percent(value: float) -> str:
    return format_number(100 * value, 2)


def _percent_difference(value: float) -> str:
    return format_difference(100 * value, 2)


def _interval(interval: Interval, write: Callable[[float], str]) -> str:
    return format_interval(interval.low, interval.high, write)
