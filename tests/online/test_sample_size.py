"""Sample sizes against the textbook's formula, and the check of the sample ratio against chi-square by hand."""

import math
from typing import Any

import pytest
from scipy import stats

from mim_lightning.online.sample_size import check_sample_ratio, sample_size


@pytest.mark.parametrize(("base", "lift", "power", "alpha"), [(0.1, 0.0495, 0.8, 0.05), (0.4, -0.1, 0.9, 0.01)])
def test_sizes_are_near_the_textbooks(base: float, lift: float, power: float, alpha: float) -> None:
    other = base * (1 + lift)
    variance = base * (1 - base) + other * (1 - other)
    wanted = (stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)) ** 2 * variance / (base - other) ** 2
    found = sample_size(base, lift, power, alpha)
    assert found.num_users == found.num_impressions == pytest.approx(wanted, rel=0.01)


def test_what_makes_an_experiment_larger() -> None:
    plain = sample_size(0.1, 0.05)
    alike = sample_size(0.1, 0.05, design_effect=1.5, impressions_per_user=3)
    assert alike.num_impressions == pytest.approx(1.5 * plain.num_impressions, abs=1)
    assert alike.num_users == pytest.approx(0.5 * plain.num_users, abs=1)
    assert sample_size(0.1, 0.05, num_comparisons=2) == sample_size(0.1, 0.05, alpha=0.025)
    assert sample_size(0.1, 0.025).num_users == pytest.approx(4 * plain.num_users, rel=0.03)


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ({"base": 0.0}, "base=0.0"),
        ({"base": 12.0}, "base=12.0"),
        ({"lift": 0.0}, "lift=0.0: must not be 0"),
        ({"lift": 9.5}, "lift=9.5"),
        ({"lift": -1.0}, "lift=-1.0"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"power": 1.0}, "power=1.0"),
        ({"power": 0.01}, "power=0.01"),
        ({"design_effect": 0.0}, "design_effect=0.0"),
        ({"impressions_per_user": 0.5}, "impressions_per_user=0.5"),
        ({"num_comparisons": 0}, "num_comparisons=0"),
        ({"base": math.nan}, "base=nan"),
    ],
)
def test_numbers_out_of_range(numbers: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        sample_size(**({"base": 0.1, "lift": 0.05} | numbers))


def test_the_ratio_of_users_is_checked_by_chi_square() -> None:
    users = {"a": 520, "b": 480, "c": 250}
    found = check_sample_ratio(users, {"a": 2, "b": 2, "c": 1})
    assert found.expected == {"a": 500, "b": 500, "c": 250}
    assert found.p_value == pytest.approx(stats.chi2.sf(2 * 20**2 / 500, 2))
    assert not found.is_mismatch


def test_lost_users_are_a_mismatch() -> None:
    assert check_sample_ratio({"a": 10_000, "b": 9_400}, {"a": 1, "b": 1}).is_mismatch
    assert not check_sample_ratio({"a": 9_000, "b": 1_000}, {"a": 0.9, "b": 0.1}).is_mismatch
    assert check_sample_ratio({"a": 9_000, "b": 1_000}, {"a": 1, "b": 1}).is_mismatch
    assert check_sample_ratio({"a": 40}, {"a": 1, "b": 1}).is_mismatch  # nobody came to the other


def test_one_arm_has_no_ratio_and_every_arm_needs_a_share() -> None:
    alone = check_sample_ratio({"a": 40}, {"a": 1})
    assert math.isnan(alone.p_value) and not alone.is_mismatch
    for shares in ({"a": 1.0}, {"a": 1.0, "b": 0.0}):
        with pytest.raises(ValueError, match=r"shares.b: needs a value above 0"):
            check_sample_ratio({"a": 3, "b": 3}, shares)
