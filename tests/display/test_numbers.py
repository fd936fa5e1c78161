"""Numbers as text, one case a branch."""

import math

from mim_lightning.display.numbers import (
    format_bytes,
    format_count,
    format_difference,
    format_duration,
    format_interval,
    format_number,
    format_p_value,
    format_percent,
    format_ranks,
    format_relative,
)


def test_counts_and_sizes() -> None:
    assert [format_count(number, "query") for number in (0, 1, 12_345)] == ["0 queries", "1 query", "12,345 queries"]
    assert format_count(1_234_567) == "1,234,567"
    assert [format_percent(*pair) for pair in ((0, 0), (0, 9), (1, 3), (1, 10_000), (3, 3))] == [
        *("-", "0.0 %", "33.3 %", "< 0.1 %", "100.0 %"),
    ]
    assert [format_bytes(number) for number in (0, 999, 1_000, 12_345_678, 2 * 10**12)] == [
        *("0 bytes", "999 bytes", "1.0 kB", "12.3 MB", "2.0 TB"),
    ]
    assert [format_duration(seconds) for seconds in (0.4, 89, 90, 5_399, 7_500)] == [
        *("0 s", "89 s", "2 min", "1 h 30 min", "2 h 5 min"),
    ]


def test_scores_and_differences() -> None:
    assert (format_number(0.12345), format_number(12.345, 2), format_number(math.nan)) == ("0.123", "12.35", "-")
    assert (format_difference(0.5), format_difference(-0.5, 1), format_difference(math.nan)) == ("+0.500", "-0.5", "-")
    assert (format_relative(0.1234), format_relative(-1, 0), format_relative(math.nan)) == ("+12.3 %", "-100 %", "-")
    assert format_interval(0.1, 0.25) == "[0.100, 0.250]"
    assert format_interval(-0.1, 0.25, format_difference) == "[-0.100, +0.250]"
    assert format_interval(math.nan, 1) == format_interval(0, math.nan) == "-"
    assert [format_p_value(p) for p in (0.0009, 0.001, 1.0, math.nan)] == ["< 0.001", "0.001", "1.000", "-"]


def test_ranks() -> None:
    assert [format_ranks(ranks) for ranks in ([3], [1, 0, 12], [1, 2, 3, 4, 5, 6], [0] * 6)] == [
        *("3", "1, -, 12", "3.5 (median of 6)", "- (median of 6)"),
    ]
