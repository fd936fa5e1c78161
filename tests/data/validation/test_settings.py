"""Settings of the check: refused by name where they make no sense, and ceilings in rows."""

from __future__ import annotations

from typing import Any

import pytest

from mim_lightning.data.validation import KINDS, CheckSettings


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("on_bad", "ignore", "data.check.on_bad: no choice 'ignore'"),
        ("max_bad", "1 percent", "data.check.max_bad=1 percent: give a share such as 1%"),
        ("max_bad", 0.01, "data.check.max_bad=0.01"),
        ("max_bad", "101%", "data.check.max_bad=101%"),
        ("max_bad", True, "data.check.max_bad=True"),
        ("max_bad", -1, "data.check.max_bad=-1"),
        ("also_bad", ["near_empty"], "did you mean near_empty_image?"),
        ("also_bad", ["product_in_two_splits"], "data.check.also_bad"),
        ("near_empty", 0.2, "data.check.near_empty=0.2"),
        ("max_hash_distance", 9, "data.check.max_hash_distance=9"),
        ("num_processes", 0, "data.check.num_processes=0"),
    ],
)
def test_settings_are_refused_by_name(key: str, value: Any, told: str) -> None:
    with pytest.raises(ValueError) as error:
        CheckSettings(**{key: value})
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("max_bad", "num_rows", "ceiling"),
    [("1%", 99, 0), ("1%", 100, 1), ("0.1%", 1000, 1), ("2.3%", 3000, 69), ("100 %", 7, 7), (5, 3, 5), ("5", 1000, 5)],
)
def test_the_ceiling_in_rows(max_bad: str | int, num_rows: int, ceiling: int) -> None:
    assert CheckSettings(max_bad=max_bad).ceiling(num_rows) == ceiling


def test_kinds_say_what_to_do() -> None:
    assert all(kind.title and kind.advice and not (kind.is_bad and kind.may_be_bad) for kind in KINDS.values())
