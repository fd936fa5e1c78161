"""The test of the sample ratio, against chi-square by hand."""

import math

import pytest
from scipy import stats

from mim_lightning.online.validity import sample_ratio


def test_the_ratio_of_users_is_checked_by_chi_square() -> None:
    users = {"a": 520, "b": 480, "c": 250}
    found = sample_ratio(users, {"a": 2, "b": 2, "c": 1})
    assert found.expected == {"a": 500, "b": 500, "c": 250}
    assert found.p_value == pytest.approx(stats.chi2.sf(2 * 20**2 / 500, 2))
    assert not found.is_mismatch


def test_lost_users_are_a_mismatch() -> None:
    assert sample_ratio({"a": 10_000, "b": 9_400}, {"a": 1, "b": 1}).is_mismatch
    assert not sample_ratio({"a": 9_000, "b": 1_000}, {"a": 0.9, "b": 0.1}).is_mismatch
    assert sample_ratio({"a": 9_000, "b": 1_000}, {"a": 1, "b": 1}).is_mismatch
    assert sample_ratio({"a": 40}, {"a": 1, "b": 1}).is_mismatch  # the other arm has no users


def test_one_arm_has_no_ratio_and_every_arm_with_users_needs_a_fraction() -> None:
    alone = sample_ratio({"a": 40}, {"a": 1})
    assert math.isnan(alone.p_value) and not alone.is_mismatch
    for fractions in ({"a": 1.0}, {"a": 1.0, "b": 0.0}):
        with pytest.raises(ValueError, match=r"traffic_fractions.b: needs a value above 0"):
            sample_ratio({"a": 3, "b": 3}, fractions)
