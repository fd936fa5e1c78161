"""ArmComparison of each arm with the control, per impression and per user: differences, lifts, intervals, p-values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mim_lightning.metrics.intervals import holm
from mim_lightning.online.aggregates import ArmCounts
from mim_lightning.online.estimates import (
    Estimate,
    Interval,
    always_valid_interval,
    always_valid_p_value,
    as_lift,
    click_rate,
    difference,
    log_ratio,
    user_rate,
)
from mim_lightning.online.power import Plan

PER_IMPRESSION, PER_USER = "per impression", "per user"
_UNKNOWN = Interval(math.nan, math.nan)


@dataclass(frozen=True)
class ArmComparison:
    """One arm against the control in one measure; nan if clicks or users are missing."""

    measure: str  # PER_IMPRESSION: impressions with a click; PER_USER: users with a click
    arm: str
    control_rate: float
    arm_rate: float
    difference: float  # of the rates, arm minus control
    difference_interval: Interval
    lift: float  # relative: 0.05 for +5 %
    lift_interval: Interval  # valid once, at the planned size
    p_value: float  # two-sided, of the log ratio, as is the lift's interval
    holm_p_value: float  # corrected for the number of arms
    always_valid_interval: Interval  # of the lift, valid at every look
    always_valid_p_value: float


def compare_arms(arms: Mapping[str, ArmCounts], control: str, plan: Plan) -> list[ArmComparison]:
    """Compare every arm with the control in both measures, per impression first; p-values corrected by measure."""
    others = [arm for name, arm in arms.items() if name != control]
    return [
        row
        for compare in (_compare_click_rates, _compare_user_rates)
        for row in _correct([compare(arms[control], arm, plan) for arm in others])
    ]


def _compare_click_rates(control: ArmCounts, arm: ArmCounts, plan: Plan) -> ArmComparison:
    """Compare impressions with a click over impressions, by the delta method over users."""
    sides = click_rate(control.sums), click_rate(arm.sums)
    ratio = log_ratio(*sides)
    between = _UNKNOWN if math.isnan(ratio.value) else difference(*sides).interval(plan.alpha)
    lift = as_lift(ratio.interval(plan.alpha))
    return _comparison(PER_IMPRESSION, arm.arm, sides, plan, between, lift, ratio.p_value())


def _compare_user_rates(control: ArmCounts, arm: ArmCounts, plan: Plan) -> ArmComparison:
    """Compare users with a click over users: independent proportions.

    Source: statsmodels; Newcombe's interval of the difference, Katz's (log) of the ratio.
    """
    from statsmodels.stats.proportion import confint_proportions_2indep, test_proportions_2indep

    sides = user_rate(control), user_rate(arm)
    between, lift, p_value = _UNKNOWN, _UNKNOWN, math.nan
    if not math.isnan(log_ratio(*sides).value):
        counts = arm.num_clicking_users, arm.num_users, control.num_clicking_users, control.num_users
        low, high = confint_proportions_2indep(*counts, method="newcomb", compare="diff", alpha=plan.alpha)
        between = Interval(float(low), float(high))
        low, high = confint_proportions_2indep(*counts, method="log", compare="ratio", alpha=plan.alpha)
        lift = Interval(float(low) - 1, float(high) - 1)
        p_value = float(test_proportions_2indep(*counts, method="log", compare="ratio").pvalue)
    return _comparison(PER_USER, arm.arm, sides, plan, between, lift, p_value)


def _comparison(
    measure: str,
    arm: str,
    sides: tuple[Estimate, Estimate],
    plan: Plan,
    between: Interval,
    lift: Interval,
    p_value: float,
) -> ArmComparison:
    ratio = log_ratio(*sides)
    return ArmComparison(
        measure=measure,
        arm=arm,
        control_rate=sides[0].value,
        arm_rate=sides[1].value,
        difference=sides[1].value - sides[0].value,
        difference_interval=between,
        lift=math.expm1(ratio.value),
        lift_interval=lift,
        p_value=p_value,
        holm_p_value=p_value,
        always_valid_interval=as_lift(always_valid_interval(ratio, plan.mixture_scale, plan.alpha)),
        always_valid_p_value=always_valid_p_value(ratio, plan.mixture_scale),
    )


def _correct(rows: list[ArmComparison]) -> list[ArmComparison]:
    """Correct the p-values of several arms for their number; those that are nan do not count."""
    corrected = holm([row.p_value for row in rows])
    return [replace(row, holm_p_value=p_value) for row, p_value in zip(rows, corrected, strict=True)]
