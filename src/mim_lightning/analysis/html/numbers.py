"""How numbers are written for people: shares with three decimals, differences with their sign, small p-values.

Numbers come in, short strings go out, "-" where there is no number; the terminal tables and the pages use them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from mim_lightning.data.validation.units import size

__all__ = ["interval", "p_value", "percent", "ranks", "share", "signed", "signed_interval", "size", "thousands"]

NOTHING = "-"
MAX_RANKS = 5


def share(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.3f}"


def signed(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:+.3f}"


def interval(low: float, high: float) -> str:
    return NOTHING if math.isnan(low) or math.isnan(high) else f"[{low:.3f}, {high:.3f}]"


def signed_interval(low: float, high: float) -> str:
    return NOTHING if math.isnan(low) or math.isnan(high) else f"[{low:+.3f}, {high:+.3f}]"


def percent(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{100 * value:+.1f} %"


def p_value(value: float) -> str:
    if math.isnan(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def ranks(values: Sequence[int]) -> str:
    """Return the rank in each of several runs, or the median of many; "-" beyond the depth, which 0 stands for."""
    if len(values) <= MAX_RANKS:
        return ", ".join(str(value) if value else NOTHING for value in values)
    middle = median(value or math.inf for value in values)
    return f"{NOTHING if math.isinf(middle) else f'{middle:g}'} (median of {len(values)})"


def thousands(value: int) -> str:
    return f"{value:,}"
