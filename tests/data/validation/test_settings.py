"""Settings of the validation: invalid ones are refused by name; limits in rows."""

from __future__ import annotations

from typing import Any

import pytest

from mim_lightning.data.validation.findings import KINDS
from mim_lightning.data.validation.settings import ValidationSettings


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("on_invalid", "ignore", "data.validation.on_invalid: no choice 'ignore'"),
        ("max_invalid", "1 percent", "data.validation.max_invalid=1 percent: give a percentage such as 1%"),
        ("max_invalid", 0.01, "data.validation.max_invalid=0.01"),
        ("max_invalid", "101%", "data.validation.max_invalid=101%"),
        ("max_invalid", True, "data.validation.max_invalid=True"),
        ("max_invalid", -1, "data.validation.max_invalid=-1"),
        ("treat_as_invalid", ["near_empty"], "did you mean near_empty_image?"),
        ("treat_as_invalid", ["product_in_two_splits"], "data.validation.treat_as_invalid"),
        ("blank_image_fraction", 0.2, "data.validation.blank_image_fraction=0.2"),
        ("max_hash_distance", 9, "data.validation.max_hash_distance=9"),
        ("num_processes", 0, "data.validation.num_processes=0"),
    ],
)
def test_settings_are_refused_by_name(key: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError) as error:
        ValidationSettings(**{key: value})
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("max_invalid", "num_rows", "ceiling"),
    [("1%", 99, 0), ("1%", 100, 1), ("0.1%", 1000, 1), ("2.3%", 3000, 69), ("100 %", 7, 7), (5, 3, 5), ("5", 1000, 5)],
)
def test_the_limit_in_rows(max_invalid: str | int, num_rows: int, ceiling: int) -> None:
    assert ValidationSettings(max_invalid=max_invalid).ceiling(num_rows) == ceiling


def test_kinds_say_what_to_do() -> None:
    assert all(kind.title and kind.advice and not (kind.is_error and kind.can_be_error) for kind in KINDS.values())
