"""The report: each arm against the control, corrected p-values, and validity warnings."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mim_lightning.online.aggregates import ArmCounts, ExperimentCounts, UserSums
from mim_lightning.online.arm_comparison import PER_IMPRESSION, PER_USER
from mim_lightning.online.estimates import click_rate, log_ratio, user_rate
from mim_lightning.online.experiment_report import ExperimentReport, make_report, to_json
from mim_lightning.online.power import Plan


def arm(name: str, rate: float, num_users: int = 2000, seed: int = 0, **rest: Any) -> ArmCounts:
    rng = np.random.default_rng([seed, *name.encode()])
    n = rng.geometric(0.4, num_users)
    c = rng.binomial(n, rate)
    facts = {"num_clicks": int(c.sum()), "num_clicking_users": int((c > 0).sum()), "num_empty": 0}
    return ArmCounts(name, UserSums.of_users(n, c), **facts, **{"num_fingerprints": 1, "mean_latency_ms": 20.0} | rest)


def counts(*arms: ArmCounts, num_crossing_users: int = 0) -> ExperimentCounts:
    return ExperimentCounts("towers", {made.arm: made for made in arms}, [], num_crossing_users, None, None)


def warned(report: ExperimentReport, words: str) -> bool:
    return any(words in warning for warning in report.warnings)


def test_each_arm_is_compared_to_the_control_in_both_measures() -> None:
    control, new, other = arm("control", 0.3), arm("new", 0.4), arm("aged", 0.3)
    report = make_report(counts(other, control, new), Plan(num_users=2000))
    assert [row.arm for row in report.arms] == ["control", "aged", "new"]
    assert [(row.measure, row.arm) for row in report.comparisons] == [
        (measure, name) for measure in (PER_IMPRESSION, PER_USER) for name in ("aged", "new")
    ]
    row = report.comparisons[1]
    sides = click_rate(control.sums), click_rate(new.sums)
    ratio = log_ratio(*sides)
    assert (row.control_rate, row.arm_rate) == (sides[0].value, sides[1].value)
    assert row.difference == pytest.approx(sides[1].value - sides[0].value)
    half = stats.norm.ppf(0.975) * math.hypot(sides[0].error, sides[1].error)
    assert row.difference_interval.low == pytest.approx(row.difference - half)
    assert row.lift == pytest.approx(sides[1].value / sides[0].value - 1)
    assert row.lift_interval.high == pytest.approx(math.exp(ratio.value + stats.norm.ppf(0.975) * ratio.error) - 1)
    assert row.p_value == pytest.approx(2 * stats.norm.sf(abs(ratio.value) / ratio.error))
    assert row.always_valid_interval.low < row.lift_interval.low < row.lift < row.lift_interval.high
    assert row.p_value < row.always_valid_p_value < 0.05


def test_users_are_compared_as_proportions() -> None:
    control, new = arm("control", 0.3), arm("new", 0.4)
    row = make_report(counts(control, new), Plan()).comparisons[1]
    p, q, n, m = user_rate(control).value, user_rate(new).value, control.num_users, new.num_users
    error = math.sqrt((1 - p) / (n * p) + (1 - q) / (m * q))
    assert row.measure == PER_USER and row.lift == pytest.approx(q / p - 1)
    assert row.lift_interval.low == pytest.approx(math.exp(math.log(q / p) - stats.norm.ppf(0.975) * error) - 1)
    assert row.p_value == pytest.approx(2 * stats.norm.sf(math.log(q / p) / error))
    assert row.difference_interval.low < q - p < row.difference_interval.high


def test_p_values_of_several_arms_are_corrected_by_holm() -> None:
    arms = [arm("control", 0.3), arm("a", 0.32, seed=1), arm("b", 0.33, seed=2), arm("c", 0.3, seed=3)]
    rows = make_report(counts(*arms), Plan()).comparisons[:3]
    ordered = sorted(rows, key=lambda row: row.p_value)
    wanted = np.minimum(1, np.maximum.accumulate([row.p_value * (3 - rank) for rank, row in enumerate(ordered)]))
    assert [row.holm_p_value for row in ordered] == pytest.approx(list(wanted))
    assert ordered[0].holm_p_value > ordered[0].p_value
    alone = make_report(counts(*arms[:2]), Plan()).comparisons[0]
    assert alone.holm_p_value == alone.p_value


def test_other_levels_make_other_intervals() -> None:
    both = counts(arm("control", 0.3), arm("new", 0.4))
    narrow, wide = (make_report(both, Plan(alpha=alpha)).comparisons[0] for alpha in (0.2, 0.01))
    for name in ("difference_interval", "lift_interval", "always_valid_interval"):
        assert (
            getattr(wide, name).low < getattr(narrow, name).low < getattr(narrow, name).high < getattr(wide, name).high
        )


def test_the_needed_size_is_that_of_the_control_and_all_comparisons() -> None:
    two = make_report(counts(arm("control", 0.3), arm("a", 0.3)), Plan(lift=0.1)).needed
    three = make_report(counts(arm("control", 0.3), arm("a", 0.3), arm("b", 0.3)), Plan(lift=0.1)).needed
    assert two is not None and three is not None and three.num_users > 1.1 * two.num_users
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert two.num_impressions == pytest.approx(z**2 * (0.3 * 0.7 + 0.33 * 0.67) / 0.03**2, rel=0.1)


def test_a_valid_experiment_has_no_warnings() -> None:
    assert make_report(counts(arm("control", 0.3), arm("new", 0.3)), Plan(num_users=2000)).warnings == []


def test_a_sample_ratio_mismatch_is_the_first_warning() -> None:
    both = counts(arm("control", 0.3), arm("new", 0.3, 1700), num_crossing_users=3)
    report = make_report(both, Plan(num_users=1000))
    assert report.warnings[0].startswith("SAMPLE RATIO MISMATCH")
    assert "control 2,000 of 1,850.0 expected, new 1,700 of 1,850.0 expected" in report.warnings[0]
    assert not warned(make_report(both, Plan(), traffic_fractions={"control": 0.54, "new": 0.46}), "MISMATCH")
    third = make_report(both, Plan(), traffic_fractions={"control": 0.4, "new": 0.35, "third": 0.25})
    assert "third 0 of 925.0 expected" in third.warnings[0]
    with pytest.raises(ValueError, match=r"traffic_fractions.new: needs a value"):
        make_report(both, Plan(), traffic_fractions={"control": 1.0})


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(), "no sample size was planned (planned_users)"),
        (Plan(num_users=2001), "a look before the planned size: arm 'control' has 2,000 of 2,001 users"),
        (Plan(num_users=2000), None),
    ],
)
def test_an_early_look_is_a_warning(plan: Plan, words: str | None) -> None:
    warnings = make_report(counts(arm("control", 0.3), arm("new", 0.3)), plan).warnings
    assert [words] == [words in warning and words for warning in warnings] if words else not warnings


def test_other_warnings() -> None:
    control = arm("control", 0.3)
    changed = counts(control, arm("new", 0.3, num_fingerprints=2), num_crossing_users=12)
    report = make_report(changed, Plan(num_users=2000))
    assert warned(report, "12 users have impressions in more than one arm")
    assert warned(report, "arm 'new' answered with 2 models")
    assert len(report.warnings) == 2
    few = make_report(counts(control, replace(arm("new", 0.3), num_clicking_users=29)), Plan(num_users=2000))
    assert few.warnings == ["arm 'new' has 29 users who clicked: too few to trust the intervals"]


def test_without_clicks_there_is_no_lift() -> None:
    report = make_report(counts(arm("control", 0.0), arm("new", 0.3)), Plan(num_users=2000))
    assert report.warnings == ["arm 'control' has no clicks yet: no lift can be estimated"]
    for row in report.comparisons:
        assert all(math.isnan(value) for value in (row.lift, row.p_value, row.holm_p_value, row.lift_interval.low))
        assert row.arm_rate > row.control_rate == 0
    assert report.needed is None
    assert json.dumps(to_json(report), allow_nan=False)


def test_one_arm_has_no_comparison() -> None:
    report = make_report(counts(arm("new", 0.3)), Plan())
    assert report.control == "new" and report.comparisons == []
    assert report.warnings == ["there is only one arm, 'new': nothing to compare it to"]


def test_the_control_must_be_known() -> None:
    both = counts(arm("a", 0.3), arm("b", 0.3))
    with pytest.raises(ValueError, match=r"control: needs a value; .*: a, b"):
        make_report(both, Plan())
    with pytest.raises(ValueError, match=r"control=c: no impressions of such an arm; there are a, b"):
        make_report(both, Plan(), control="c")
    assert make_report(both, Plan(), control="b").comparisons[0].arm == "a"
