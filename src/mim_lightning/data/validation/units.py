"""How the check writes numbers for people: counts with their noun, shares, sizes of files.

Numbers come in, short texts go out; report, terminal and page use them.
"""

from __future__ import annotations

NOTHING = "-"


def counted(number: int, noun: str) -> str:
    """Return "1 row", "1,234 rows" or "2 queries"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def share(part: int, whole: int) -> str:
    """Return a share such as "1.2 %"; small ones are not told as none."""
    if not whole:
        return NOTHING
    percent = 100 * part / whole
    return "< 0.1 %" if 0 < percent < 0.05 else f"{percent:.1f} %"


def size(num_bytes: int) -> str:
    """Return bytes with a decimal unit, such as "12.3 MB"."""
    value = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"
