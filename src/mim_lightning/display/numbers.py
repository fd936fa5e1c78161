"""Numbers as text for lines, tables and pages; "-" where there is no number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

NOTHING = "-"
MAX_RANKS = 5


def format_number(value: float, digits: int = 3) -> str:
    return NOTHING if math.isnan(value) else f"{value:.{digits}f}"


def format_difference(value: float, digits: int = 3) -> str:
    return NOTHING if math.isnan(value) else f"{value:+.{digits}f}"


def format_relative(value: float, digits: int = 1) -> str:
    """Return a relative difference, such as "+12.3 %" for 0.123."""
    return NOTHING if math.isnan(value) else f"{100 * value:+.{digits}f} %"


def format_interval(low: float, high: float, write: Callable[[float], str] = format_number) -> str:
    """Return "[low, high]", each end as `write` has it."""
    return NOTHING if math.isnan(low) or math.isnan(high) else f"[{write(low)}, {write(high)}]"


def format_p_value(value: float) -> str:
    if math.isnan(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def format_percent(part: int, whole: int) -> str:
    """Return a proportion of a whole such as "1.2 %"; a small one is not written as zero."""
    if not whole:
        return NOTHING
    percent = 100 * part / whole
    return "< 0.1 %" if 0 < percent < 0.05 else f"{percent:.1f} %"


def format_count(number: int, noun: str = "") -> str:
    """Return "1 row", "1,234 rows" or "2 queries"; without a noun "1,234"."""
    if not noun:
        return f"{number:,}"
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def format_bytes(num_bytes: int) -> str:
    """Return bytes with a decimal unit, such as "12.3 MB"."""
    value = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def format_duration(seconds: float) -> str:
    """Return "45 s", "12 min" or "3 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def format_ranks(ranks: Sequence[int]) -> str:
    """Return the rank in each of several runs, or the median of many; 0 is beyond the depth: "-"."""
    if len(ranks) <= MAX_RANKS:
        return ", ".join(str(rank) if rank else NOTHING for rank in ranks)
    middle = median(rank or math.inf for rank in ranks)
    return f"{NOTHING if math.isinf(middle) else f'{middle:g}'} (median of {len(ranks)})"
