"""Sample sizes against the formula of textbooks, and plans out of range."""

import math
from typing import Any

import pytest
from scipy import stats

from mim_lightning.online.power import Plan, sample_size


@pytest.mark.parametrize(
    ("baseline_rate", "lift", "power", "alpha"), [(0.1, 0.0495, 0.8, 0.05), (0.4, -0.1, 0.9, 0.01)]
)
def test_sizes_are_near_those_of_textbooks(baseline_rate: float, lift: float, power: float, alpha: float) -> None:
    other = baseline_rate * (1 + lift)
    variance = baseline_rate * (1 - baseline_rate) + other * (1 - other)
    wanted = (stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)) ** 2 * variance / (baseline_rate - other) ** 2
    found = sample_size(baseline_rate, lift, power, alpha)
    assert found.num_users == found.num_impressions == pytest.approx(wanted, rel=0.01)


def test_settings_that_make_an_experiment_larger() -> None:
    plain = sample_size(0.1, 0.05)
    alike = sample_size(0.1, 0.05, design_effect=1.5, impressions_per_user=3)
    assert alike.num_impressions == pytest.approx(1.5 * plain.num_impressions, abs=1)
    assert alike.num_users == pytest.approx(0.5 * plain.num_users, abs=1)
    assert sample_size(0.1, 0.05, num_comparisons=2) == sample_size(0.1, 0.05, alpha=0.025)
    assert sample_size(0.1, 0.025).num_users == pytest.approx(4 * plain.num_users, rel=0.03)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"baseline_rate": 0.0}, "baseline_rate=0.0"),
        ({"baseline_rate": 12.0}, "baseline_rate=12.0"),
        ({"lift": 0.0}, "lift=0.0: must not be 0"),
        ({"lift": 9.5}, "lift=9.5"),
        ({"lift": -1.0}, "lift=-1.0"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"power": 1.0}, "power=1.0"),
        ({"power": 0.01}, "power=0.01"),
        ({"design_effect": 0.0}, "design_effect=0.0"),
        ({"impressions_per_user": 0.5}, "impressions_per_user=0.5"),
        ({"num_comparisons": 0}, "num_comparisons=0"),
        ({"baseline_rate": math.nan}, "baseline_rate=nan"),
    ],
)
def test_numbers_out_of_range(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_size(**({"baseline_rate": 0.1, "lift": 0.05} | numbers))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lift": -0.5, "alpha": 0.1, "power": 0.5, "num_users": 1}, None),
        ({"lift": 0}, "lift=0"),
        ({"lift": -1}, "lift=-1"),
        ({"lift": 4.95}, "lift=4.95"),
        ({"alpha": 1.0}, "alpha=1.0"),
        ({"power": 0.05}, "power=0.05"),
        ({"num_users": 0}, "planned_users=0"),
    ],
)
def test_invalid_plans(settings: dict[str, Any], message: str | None) -> None:
    if message is None:
        Plan(**settings)
        return
    with pytest.raises(ValueError, match=message):
        Plan(**settings)
